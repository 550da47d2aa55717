"""Merging inside the vision tower: between attention and MLP of each block, the tokens most like others join them.

The blocks really run with fewer tokens. Behind the block of the features every token gets the vector of its group, so
that what follows (pooling, projector, placeholders) finds the shape that it knows; which tokens were one is remembered
until the strategy keeps one of each group.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import count
from typing import Any

import torch
from torch import Tensor

from tokentrim.contracts.adapter import Layout, TowerBlock
from tokentrim.contracts.extras import TowerMerger
from tokentrim.contracts.strategy import Spatial
from tokentrim.contracts.toolkit.matching import merge_sized, most_pairs, soft_matching
from tokentrim.engine.seams import attention
from tokentrim.engine.seams.clock import Clock
from tokentrim.engine.seams.undo import Undo, patch
from tokentrim.errors import EngineError, UnsupportedError, complaint

_KERNELS = ("sdpa", "eager")
_MOST = 1 << 32
"""Tokens of the tower in one encoding, at most: groups of different encodings have different numbers."""


@dataclass
class _Encoding:
    """The pictures that one thread encodes. P pieces of T tokens run through the tower together.

    Attributes:
        pairs: how many merge in each block.
        sizes: float32 [P, now], tokens that each one stands for.
        slots: int64 [P, T], which of them each token went into; None before the first block.
        metric: float32 [P, now, head_dim], keys of the running block, mean over heads.
        done: int64 [P, T] per call of the tower, the number of each token's group.
        rounds: pairs that have merged in each block of the running call.
    """

    pairs: tuple[int, ...] = ()
    sizes: Tensor | None = None
    slots: Tensor | None = None
    metric: Tensor | None = None
    done: list[Tensor] = field(default_factory=list[Tensor])
    rounds: list[int] = field(default_factory=list[int])


class _Thread(threading.local):
    """What one thread encodes, None while nothing is encoded for a trimmed prompt; pairs of its last call."""

    def __init__(self) -> None:
        self.encoding: _Encoding | None = None
        self.rounds: tuple[int, ...] = ()


@dataclass
class Merging:
    """Makes the blocks of a vision tower merge tokens while pictures are encoded.

    Attributes:
        layout: the located modules.
        part: says how many pairs merge in each block.
        clock: receives the time of matching under ``selection``.
    """

    layout: Layout
    part: TowerMerger
    clock: Clock
    _now: _Thread = field(default_factory=_Thread)
    _numbers: Any = field(default_factory=count)

    @classmethod
    def of(cls, layout: Layout, parts: Sequence[Spatial], clock: Clock) -> Merging | None:
        """For the part that merges in the tower; None where none does.

        Raises:
            UnsupportedError: when the tower's attention takes no weights of its keys.
        """
        part = next((part for part in parts if isinstance(part, TowerMerger)), None)
        if part is None:
            return None
        implementation = attention.implementation_of(layout.vision_config)
        if implementation not in _KERNELS:
            raise UnsupportedError(
                complaint("the attention of a vision tower whose tokens merge", f"be one of {', '.join(_KERNELS)}",
                          implementation, "load the model with attn_implementation='sdpa'")
            )  # fmt: skip
        devices = sorted({str(weight.device) for block in layout.tower_blocks for weight in block.module.parameters()})
        if len(devices) > 1:
            raise UnsupportedError(
                complaint("a vision tower whose tokens merge", "run on one device", devices,
                          "give device_map one device for the vision tower")
            )  # fmt: skip
        return cls(layout, part, clock)

    @property
    def _blocks(self) -> tuple[TowerBlock, ...]:
        """The blocks that the features come out of."""
        blocks = self.layout.tower_blocks
        return blocks[: len(blocks) + self.layout.features_block + 1]

    @property
    def rounds(self) -> tuple[int, ...]:
        """Pairs that merged in each block when this thread last encoded a picture."""
        return self._now.rounds

    def attach(self, undo: Undo) -> None:
        """Change the blocks' forwards, which do what they did except between :meth:`begin` and its end."""
        for index, block in enumerate(self._blocks):
            patch(block.module, "forward", functools.partial(self._forward, index, block), undo)
            attention.observe(block.attention, self._look, undo)

    def begin(self, undo: Undo) -> None:
        """Pictures are encoded from here on, until ``undo`` runs."""
        undo.note(functools.partial(setattr, self._now, "encoding", None))
        self._now.encoding = _Encoding()
        attention.switch_on(self.layout.vision_config, undo)

    def groups(self, arrange: Callable[[Sequence[Tensor]], Tensor]) -> Tensor:
        """int64 [1, placeholders]: the number of the group that each token of the pictures went into.

        Args:
            arrange: lays numbers [pieces, H, tokens] of the tower's tokens out like the placeholders [H, ...].

        Raises:
            EngineError: when the tower did not run.
            UnsupportedError: when a placeholder is made of several tokens of the tower.
        """
        encoding = self._now.encoding
        done = encoding.done if encoding is not None else []
        if not done:
            raise EngineError(
                complaint("the blocks of the vision tower", "run while pictures are encoded", "none",
                          "please report this model")
            )  # fmt: skip
        # Where each placeholder comes from does not depend on what is seen: told on the host, without waiting.
        sizes = [tuple(numbers.shape) for numbers in done]
        ends = [0]
        pieces: list[Tensor] = []
        for rows, tokens in sizes:
            index = torch.arange(ends[-1], ends[-1] + rows * tokens, dtype=torch.float64).view(rows, 1, tokens)
            pieces.append(torch.cat([index, index**2, -index], dim=1))
            ends.append(ends[-1] + rows * tokens)
        source, squared, negated = arrange(pieces).double()
        # A mean of several tokens changes the squares, a maximum of several the negatives.
        if not torch.equal(torch.stack([source**2, source]), torch.stack([squared, -negated])):
            raise UnsupportedError(
                complaint("the features of pictures whose tokens merge in the vision tower",
                          "be what the tower made of one patch each", "patches that are pooled or resized behind it",
                          "choose another strategy for such videos, and for images of so many tiles")
            )  # fmt: skip
        numbers = torch.cat([numbers.flatten() for numbers in done])
        return (numbers[source.long().to(numbers.device)] + next(self._numbers) * _MOST).unsqueeze(0)

    # ------------------------------------------------------------------ inside the tower

    def _forward(self, index: int, block: TowerBlock, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def forward(hidden_states: Tensor, attention_mask: Any = None, **kwargs: Any) -> Any:
            encoding = self._now.encoding
            if encoding is None:
                return function(hidden_states, attention_mask, **kwargs)
            if attention_mask is not None:
                raise UnsupportedError(
                    complaint("a vision tower whose tokens merge", "let every token see all others", "a mask",
                              "choose another strategy for this model")
                )  # fmt: skip
            if index == 0:
                self._enter(encoding, hidden_states)
            mixed = block.attention(hidden_states=block.norm1(hidden_states), attention_mask=None, **kwargs)[0]
            mixed = self._merged(encoding, index, hidden_states + mixed)
            mixed = mixed + block.mlp(block.norm2(mixed))
            return self._left(encoding, mixed) if index == len(self._blocks) - 1 else mixed

        return forward

    def _look(self, call: attention.AttentionCall) -> attention.Attended:
        """Note the keys of a block, and let every key count as often as tokens have merged into it."""
        encoding = self._now.encoding
        if encoding is None or encoding.sizes is None:
            return call.run()
        encoding.metric = head_mean(call.key)
        merged = encoding.slots is not None and encoding.sizes.shape[1] < encoding.slots.shape[1]
        return (weighed(call, encoding.sizes) if merged else call).run()

    def _enter(self, encoding: _Encoding, hidden: Tensor) -> None:
        pieces, tokens = hidden.shape[:2]
        encoding.rounds.clear()
        encoding.pairs = self.part.merges_in_tower(tokens - self.layout.has_cls, len(self._blocks))
        encoding.sizes = torch.ones(pieces, tokens, dtype=torch.float32, device=hidden.device)
        encoding.slots = torch.arange(tokens, device=hidden.device).expand(pieces, -1)

    def _merged(self, encoding: _Encoding, index: int, hidden: Tensor) -> Tensor:
        """``hidden`` [P, now, D] behind the round of a block."""
        pairs = encoding.pairs[index] if index < len(encoding.pairs) else 0
        protected = int(self.layout.has_cls)
        pairs = min(pairs, most_pairs(hidden.shape[1], protected))
        metric, sizes, slots = encoding.metric, encoding.sizes, encoding.slots
        if pairs <= 0 or metric is None or sizes is None or slots is None:
            encoding.rounds.append(0)
            return hidden
        encoding.rounds.append(pairs)
        with self.clock.timed("selection", hidden.device):
            with torch.no_grad():
                places = soft_matching(metric, pairs, protected)
            hidden, encoding.sizes = merge_sized(hidden, sizes, places, hidden.shape[1] - pairs)
            encoding.slots = places.gather(1, slots)
        return hidden

    def _left(self, encoding: _Encoding, hidden: Tensor) -> Tensor:
        """Every token [P, T, D] with what its group has become."""
        slots, encoding.metric, encoding.sizes = encoding.slots, None, None
        self._now.rounds = tuple(encoding.rounds)
        if slots is None:
            return hidden
        encoding.slots = None
        first = sum(numbers.numel() for numbers in encoding.done)
        piece = torch.arange(slots.shape[0], device=slots.device).unsqueeze(1)
        encoding.done.append(slots + piece * slots.shape[1] + first)
        return hidden.gather(1, slots.unsqueeze(2).expand(-1, -1, hidden.shape[2]))


def head_mean(key: Tensor) -> Tensor:
    """float32 [B, T, head_dim]: keys [B, H, T, head_dim], by which tokens are alike."""
    return key.detach().float().mean(dim=1)


def weighed(call: attention.AttentionCall, sizes: Tensor) -> attention.AttentionCall:
    """The call with log(size) added to every product with a key: a key counts as often as tokens [B, T] say."""
    return replace(call, mask=sizes.log().to(call.query.dtype)[:, None, None])


def first_of_groups(groups: Tensor, valid: Tensor) -> Tensor:
    """int64 [B, N]: for each token the first of its row with the same number in ``groups`` [B, N]; -1 in padding."""
    found = groups.masked_fill(~valid, -1)
    ordered, order = found.sort(dim=1, stable=True)
    begins = ordered.diff(dim=1, prepend=ordered[:, :1] - 1) != 0
    places = torch.arange(found.shape[1], device=found.device)
    start = torch.where(begins, places, 0).cummax(dim=1).values
    first = torch.empty_like(order).scatter_(1, order, order.gather(1, start))
    return first.masked_fill(~valid, -1)
