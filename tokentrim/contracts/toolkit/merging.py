"""Merging: which token goes into which, sums of what came together, and vectors at the places that an index names.

Pure functions for ragged batches, as in :mod:`tokentrim.contracts.toolkit.clustering`. B rows, N tokens, D numbers per
token; in an index -1 says nothing. None of them reads the device.
"""

from __future__ import annotations

from typing import Final, Literal

import torch
from torch import Tensor

from tokentrim.contracts.selection import Selection, pad_rows
from tokentrim.contracts.toolkit.clustering import first_argmax, unit

_AT_ONCE: Final = 1 << 25
"""Cosines that are held at once (float32: 134 MB)."""


def rows_at(vectors: Tensor, index: Tensor) -> Tensor:
    """[..., n, D]: those of ``vectors`` [..., N, D] at ``index`` int64 [..., n]; any of them where it is -1."""
    return vectors.gather(-2, index.clamp(min=0).unsqueeze(-1).expand(*index.shape, vectors.shape[-1]))


def written(over: Tensor, index: Tensor, values: Tensor) -> Tensor:
    """[..., N]: ``over`` with ``values`` [..., n] at ``index`` int64 [..., n], but where that is -1."""
    width = over.shape[-1]
    spare = torch.nn.functional.pad(over, (0, 1))  # a place more, for what belongs nowhere
    return spare.scatter(-1, index.masked_fill(index < 0, width), values)[..., :width]


def added(start: Tensor, slots: Tensor, vectors: Tensor) -> tuple[Tensor, Tensor]:
    """(float32 [B, n, D], int64 [B, n]): what stands at each slot when tokens are added up there, and how many came.

    Args:
        start: [B, n, D], what stood there before.
        slots: int64 [B, N]: the slot of each token; -1 = none.
        vectors: [B, N, D].
    """
    n = start.shape[1]
    slots = slots.masked_fill(slots < 0, n)
    sums = torch.nn.functional.pad(start.float(), (0, 0, 0, 1))
    sums = sums.scatter_add(1, slots.unsqueeze(-1).expand_as(vectors), vectors.float())
    came = slots.new_zeros(len(slots), n + 1).scatter_add(1, slots, torch.ones_like(slots))
    return sums[:, :n], came[:, :n]


def cluster_means(points: Tensor, own: Tensor) -> Tensor:
    """[B, N, D]: at the point that stands for a cluster the mean of its members in float32, zeros elsewhere.

    Args:
        points: [B, N, D].
        own: int64 [B, N]: the point that stands for each one's cluster; -1 = in none.
    """
    sums, size = added(torch.zeros_like(points), own, points)
    return sums / size.clamp(min=1).unsqueeze(-1)


def most_alike(vectors: Tensor, others: Tensor, group: Tensor, groups: Tensor) -> tuple[Tensor, Tensor]:
    """(float32, int64) [..., N]: the largest cosine of each vector with one of ``others``, and which; of several the
    first. Where its group has none the cosine is -2.

    Cost: O(N n D), a block of vectors at a time.

    Args:
        vectors: [..., N, D].
        others: [..., n, D], one at least.
        group: int64 [..., N], 0 or more: each is compared with what is of its group alone.
        groups: int64 [..., n], of the others; -1 for what nothing is compared with.
    """
    step, towards = max(1, _AT_ONCE // max(groups.numel(), 1)), unit(others).transpose(-2, -1)
    largest: list[Tensor] = []
    whose: list[Tensor] = []
    for part, own in zip(unit(vectors).split(step, dim=-2), group.split(step, dim=-1), strict=True):
        cosines = (part @ towards).masked_fill(own.unsqueeze(-1) != groups.unsqueeze(-2), -2.0)
        largest.append(cosines.amax(dim=-1))
        whose.append(first_argmax(cosines))
    return torch.cat(largest, dim=-1), torch.cat(whose, dim=-1)


def merge_into(
    into: Tensor,
    counts: tuple[int, ...],
    line: Tensor | None = None,
    *,
    reduce: Literal["mean", "sum"] = "mean",
    behind: tuple[int, ...] | None = None,
) -> Selection:
    """The selection in which each token goes into the one that it names.

    Args:
        into: int64 [B, N]: itself for a token that is kept, the kept one that a token is merged into, and -1 for what
            is dropped, as padding is.
        counts: kept tokens of each row.
        line: int64 [B, N]: kept tokens go on in ascending order of it; None = as they stand.
        reduce: as in :class:`tokentrim.Selection`.
        behind: likewise.
    """
    place = torch.arange(into.shape[1], device=into.device).expand_as(into)
    line = (place if line is None else line).masked_fill(into != place, torch.iinfo(torch.int64).max)
    kept = pad_rows(line.argsort(dim=1)[:, : max(counts, default=0)], counts)
    slots = written(torch.full_like(into, -1), kept, torch.arange(kept.shape[1], device=into.device).expand_as(kept))
    target = slots.gather(1, into.clamp(min=0)).masked_fill(into < 0, -1)
    return Selection(kept, counts, target, reduce=reduce, behind=behind)
