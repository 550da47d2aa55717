"""Ranking inside groups: crops, tiles, frames or videos that have a budget each.

Pure functions for ragged batches, as in :mod:`tokentrim.contracts.toolkit.clustering`: what stands in padding is
numbered like everything else, and is for the caller to leave out. Equal scores go to the lower index.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tokentrim.contracts.selection import rankable


def grouped_order(scores: Tensor, groups: Tensor) -> Tensor:
    """int64 [B, N]: place of every token when a row is sorted by group, and in a group by falling score.

    Args:
        scores: real numbers [B, N].
        groups: int64 [B, N]; the lowest number stands first.
    """
    by_score = rankable(scores).argsort(dim=1, descending=True, stable=True)
    order = by_score.gather(1, groups.gather(1, by_score).argsort(dim=1, stable=True))
    places = torch.arange(scores.shape[1], device=scores.device).expand_as(order)
    return torch.empty_like(order).scatter_(1, order, places)


def ranks_within(scores: Tensor, groups: Tensor) -> Tensor:
    """int64 [B, N]: how many tokens of its own group stand above each token, 0 for the best of a group.

    Args:
        scores: real numbers [B, N].
        groups: int64 [B, N], numbers 0..N, in any order.
    """
    sizes = groups.new_zeros(len(groups), groups.shape[1] + 1).scatter_add_(1, groups, torch.ones_like(groups))
    return grouped_order(scores, groups) - (sizes.cumsum(dim=1) - sizes).gather(1, groups)


def numbered(*parts: Tensor) -> Tensor:
    """int64 [n]: the number of each combination of ``parts`` int64 [n], -1 or more, in ascending order of them.

    Reads the device where it is not the host.
    """
    key = parts[0]
    for part in parts[1:]:
        key = key * (part.max() + 2 if len(part) else 1) + part + 1
    return torch.unique(key, return_inverse=True)[1]
