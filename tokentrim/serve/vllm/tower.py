"""What is read of a served vision tower while it encodes: vLLM's own modules run, and hooks see what they are given.

The attention core of each block is handed queries and keys, which are all that rows, columns and keys are made of; the
kernel behind it runs as ever.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from tokentrim.contracts.sites import Need
from tokentrim.engine.seams.attention_rows import tower_reading
from tokentrim.errors import EngineError, complaint
from tokentrim.serve.vllm.bridge import Reading

Read = dict[Reading, list[Tensor]]
"""What was read, one entry for each attention call of a block, or for each call of the projector."""


@dataclass(frozen=True)
class Tower:
    """A served tower.

    Attributes:
        cores: what computes attention in each block that is loaded, first to last: called with query and key
            [B, tokens, H * head_dim] or [B, tokens, H, head_dim].
        heads: of each core.
        scaling: of its products.
        has_cls: whether token 0 is a [CLS] token.
        projector: what the features leave the tower through, token by token; None where nothing does.
    """

    cores: tuple[nn.Module, ...]
    heads: int
    scaling: float
    has_cls: bool
    projector: nn.Module | None = None

    @contextmanager
    def reading(self, wanted: Iterable[Reading], packed: Sequence[int] | None = None) -> Generator[Read, None, None]:
        """Read ``wanted`` of what is encoded inside the block.

        Args:
            wanted: what, in which blocks.
            packed: tokens of each piece that is attended to by itself, where all lie in one row; None = rows are
                pieces.
        """
        read: Read = {}
        needs: dict[int, list[Need]] = {}
        for need, block in wanted:
            needs.setdefault(-1 if need == Need.VISION_HIDDEN else block, []).append(need)
        hooks = [self._watched(block, here, read, packed) for block, here in needs.items()]
        try:
            yield read
        finally:
            for hook in hooks:
                hook.remove()

    def _watched(self, block: int, needs: Sequence[Need], read: Read, packed: Sequence[int] | None) -> Any:
        look: Callable[..., None]
        if block < 0:
            module, look = self.projector, partial(_entering, read)
        else:
            module, look = self.cores[block], partial(self._look, block, needs, read, packed)
        if module is None:
            raise EngineError(complaint("a projector that is read", "be there", None, "please report this model"))
        return module.register_forward_pre_hook(look, with_kwargs=True)

    def _look(
        self, block: int, needs: Sequence[Need], read: Read, packed: Sequence[int] | None, module: nn.Module,
        args: tuple[Any, ...], kwargs: dict[str, Any],
    ) -> None:  # fmt: skip
        query, key = (args[n] if len(args) > n else kwargs[name] for n, name in enumerate(("query", "key")))
        with torch.no_grad():
            pair = [t.unflatten(-1, (self.heads, -1)) if t.dim() == 3 else t for t in (query, key)]
            query, key = (t.transpose(1, 2) for t in pair)
            pieces = [(query, key)]
            if packed is not None:
                pieces = list(zip(query.split(list(packed), dim=2), key.split(list(packed), dim=2), strict=True))
            for need in needs:
                found = [tower_reading(need, q, k, self.scaling, has_cls=self.has_cls) for q, k in pieces]
                read.setdefault((need, block), []).extend(found)


def _entering(read: Read, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """See what enters the projector: [pieces, tokens, D]."""
    vectors: Tensor = (args or tuple(kwargs.values()))[0]
    read.setdefault((Need.VISION_HIDDEN, 0), []).append(vectors.detach().transpose(1, 2))
