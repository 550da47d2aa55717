"""Bipartite soft matching: rounds in which a part of the tokens merges with those most like them.

Pure functions, on B rows of T tokens each. None of them reads the device, and a row gives the same result alone and in
any batch. Equal values go to the lower index.

Source: Bolya et al., "Token Merging: Your ViT But Faster", International Conference on Learning Representations, 2023.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tokentrim.contracts.toolkit.clustering import first_argmax, unit


def most_pairs(tokens: int, protected: int = 0) -> int:
    """Pairs that can merge in one round: half of the ``tokens`` that are not ``protected``."""
    return max(0, tokens - protected) // 2


def soft_matching(metric: Tensor, pairs: int, protected: int = 0) -> Tensor:
    """int64 [B, T]: the place among the T - r tokens after a round that each token goes to, r = ``pairs``.

    Tokens 0, 2, 4, ... each look for the one of 1, 3, 5, ... with the largest cosine, and the r best matched of them go
    to the place of theirs. Behind the round the others of the even tokens stand first, in order (where nothing is
    protected by falling similarity), and all odd ones behind them.

    Args:
        metric: [B, T, d], by which tokens are alike.
        pairs: at most :func:`most_pairs`.
        protected: first tokens, 0, 1 or 2, that merge with none and stay where they are.
    """
    rows, tokens, _ = metric.shape
    metric = unit(metric)
    evens, odds = metric[:, ::2], metric[:, 1::2]
    n_even, n_odd = evens.shape[1], odds.shape[1]
    if pairs <= 0 or not n_odd:
        return torch.arange(tokens, device=metric.device).expand(rows, -1)
    cosines = evens @ odds.transpose(1, 2)
    if protected > 0:
        cosines[:, 0] = float("-inf")
    if protected > 1:
        cosines[:, :, 0] = float("-inf")
    partner = first_argmax(cosines)
    order = cosines.amax(dim=2).argsort(dim=1, descending=True, stable=True)
    going, staying = order[:, :pairs], order[:, pairs:]
    if protected > 0:
        staying = staying.sort(dim=1).values
    left = n_even - pairs
    front = torch.arange(left, device=metric.device)
    behind = torch.arange(left, left + n_odd, device=metric.device)
    if protected > 1:  # the second token stays the second
        front = front + (front > 0)
        behind = torch.cat([behind.new_ones(1), behind[1:]])
    place = torch.empty(rows, n_even, dtype=torch.int64, device=metric.device)
    place.scatter_(1, staying, front.expand(rows, -1))
    place.scatter_(1, going, behind[partner.gather(1, going)])
    slots = torch.empty(rows, tokens, dtype=torch.int64, device=metric.device)
    slots[:, ::2], slots[:, 1::2] = place, behind
    return slots


def merge_sized(vectors: Tensor, sizes: Tensor, slots: Tensor, left: int) -> tuple[Tensor, Tensor]:
    """The mean of the ``vectors`` that go to each of ``left`` places, weighted by their sizes, and the new sizes.

    Args:
        vectors: [B, T, D].
        sizes: float32 [B, T], tokens that each one stands for.
        slots: int64 [B, T], places, every one of which is taken.
        left: S.

    Returns:
        [B, S, D] of the vectors' dtype, computed in float32, and float32 [B, S].
    """
    rows, _, width = vectors.shape
    total = vectors.new_zeros(rows, left, width, dtype=torch.float32)
    total.scatter_add_(1, slots.unsqueeze(2).expand(-1, -1, width), vectors.float() * sizes.unsqueeze(2))
    after = sizes.new_zeros(rows, left).scatter_add_(1, slots, sizes)
    return (total / after.unsqueeze(2)).to(vectors.dtype), after
