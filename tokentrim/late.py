"""Late projection: what a strategy drops before the first layer is never projected.

The projector (a merger of patches, DeepStack's mergers) runs while pictures are encoded, before anything is known of
the prompt. It sees one visual token at a time. So where boundary 0 decides without looking at its output, the engine
lets it wait: inside ``generate`` it returns tokens that only carry their number, the model arranges them as it always
does (tiles, windows, line ends), and when boundary 0 has chosen, the projector is handed what is left.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor

from tokentrim.adapter import Projector
from tokentrim.deciding import Doubts
from tokentrim.generating import replaced
from tokentrim.stream import Stream, gather_columns, place

_BASE, _DIGITS = 128, 4
"""Numbers are written in digits that every floating-point format holds exactly (bfloat16: integers up to 256)."""


class LateProjection:
    """Projectors that wait, and what they are to be handed.

    Attributes:
        projectors: those of visual tokens first, then DeepStack's in order; empty where nothing can wait.
        allowed: whether a call is running whose pictures are encoded for it alone.
    """

    def __init__(self, projectors: Sequence[Projector]) -> None:
        self.projectors = tuple(projectors)
        self.allowed = False
        self._given: list[list[Tensor]] = [[] for _ in projectors]

    def waits(self, index: int = 0) -> bool:
        """Whether what a projector says of the running prompt are numbers yet."""
        return index < len(self._given) and bool(self._given[index])

    def forget(self) -> None:
        """Drop what was to be projected."""
        for given in self._given:
            given.clear()

    @contextmanager
    def waiting(self) -> Generator[None]:
        """Within the block projectors do not run, where that is allowed and nobody listens to them."""
        modules = [projector.module for projector in self.projectors]
        watched = any(module._forward_hooks or module._forward_pre_hooks for module in modules)  # type: ignore[attr-defined]
        with ExitStack() as stack:
            if self.allowed and not watched and not torch.is_grad_enabled():
                for index, module in enumerate(modules):
                    stack.callback(replaced(module, "forward", self._stand_in(index)))
            yield

    def _stand_in(self, index: int) -> Callable[[Tensor], Tensor]:
        projector, given = self.projectors[index], self._given[index]

        def numbered(states: Tensor) -> Tensor:
            first = sum(_tokens(projector, one) for one in given)
            given.append(states)
            n = _tokens(projector, states)
            number = torch.arange(first, first + n, device=states.device)
            marks = states.new_zeros(n, projector.width)
            marks[:, :_DIGITS] = (number.unsqueeze(1) // _powers(number) % _BASE).to(marks.dtype)
            return marks if projector.merges > 1 else marks.view(*states.shape[:-1], projector.width)

        return numbered

    def project(self, marks: Tensor, *, whole: bool, index: int = 0) -> Tensor:
        """[B, N, D]: what the projector says of the tokens whose ``marks`` [B, N, D] these are.

        Args:
            marks: what the model was given in their place.
            whole: run it over everything it was to see, as the model would have, and not over these alone.
            index: which projector.
        """
        if not marks.numel():
            return marks
        projector, given = self.projectors[index], self._given[index]
        total = sum(_tokens(projector, one) for one in given)
        digits = marks[..., :_DIGITS].round().long()
        number = (digits * _powers(digits)).sum(-1).clamp(min=0, max=total - 1).to(given[0].device)
        if whole:
            said = torch.cat([projector.module(states).flatten(0, -2) for states in given])[number]
        else:
            states = given[0].flatten(0, -2) if len(given) == 1 else torch.cat([one.flatten(0, -2) for one in given])
            picked = states.unflatten(0, (total, projector.merges))[number]
            said = projector.module(picked.flatten(0, 2)).view(*number.shape, -1)
        return said.to(marks.device, marks.dtype)

    def fill(self, hidden: Tensor, stream: Stream, *, whole: bool, doubts: Doubts) -> Tensor:
        """``hidden`` [B, T, D] with the projected features of the visual tokens that ``stream`` still has.

        That a model arranged the numbers and did not calculate with them is noted among the ``doubts``.
        """
        marks = gather_columns(hidden, stream.vis_pos)
        digits = marks[..., :_DIGITS]
        doubts.note_mangled((digits != digits.round().clamp(0, _BASE - 1)).any(-1) & stream.vis_valid)
        return place(hidden, self.project(marks, whole=whole), stream)


def _tokens(projector: Projector, states: Tensor) -> int:
    return states.shape[:-1].numel() // projector.merges


def _powers(like: Tensor) -> Any:
    return _BASE ** torch.arange(_DIGITS, device=like.device)
