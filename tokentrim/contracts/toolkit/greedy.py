"""Greedy selection that several methods share: one token after the other, the best beside those already chosen.

Pure functions, for the strategies that come with tokentrim and for plugins. B rows of a batch, N tokens of the longest
row, D numbers per token. Rows may be ragged: per-row counts are host integers, the tokens of a row stand first, and
what stands behind them is ignored. No function reads the device: a turn costs a few small operations on it, and the
host never waits. Equal gains go to the lower index; no token is chosen twice; a row gives the same result alone and in
any batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, TypeVar

import torch
from torch import Tensor

from tokentrim.contracts.selection import pad_rows
from tokentrim.contracts.toolkit.clustering import unit, within

State = TypeVar("State")

_TABLE: Final = 4096
"""All products of pairs are kept up to this number squared (float32: 67 MB); of more, those of a chosen token alone."""
_SAME: Final = 1 - 1e-6
"""Cosine from which on two tokens are copies of each other: what lies above is rounding."""
_SPENT: Final = 1e-5
"""Share of a token's own volume below which what is left of it is rounding."""


def greedy_order(
    start: State,
    gain: Callable[[State], Tensor],
    take: Callable[[State, Tensor], State],
    free: Tensor,
    counts: Sequence[int],
) -> Tensor:
    """int64 [B, max(counts)]: tokens in the order in which they are chosen; -1 past a row's count.

    Args:
        start: what ``gain`` looks at while nothing is chosen.
        gain: of a state, finite numbers [B, N]: what each token would add.
        take: the state when ``pick`` int64 [B, 1] is chosen as well; it may overwrite the one it is given. Rows that
            are full are handed picks as well, which count nothing.
        free: bool [B, N]: tokens that may be chosen; at least as many in each row as it chooses.
        counts: tokens to choose in each row.
    """
    turns = max(counts, default=0)
    if not turns:
        return torch.empty(free.shape[0], 0, dtype=torch.int64, device=free.device)
    barred = torch.zeros(free.shape, device=free.device).masked_fill(~free, float("-inf"))
    picks: list[Tensor] = []
    state = start
    for turn in range(turns):
        pick = torch.argmax(gain(state) + barred, dim=1, keepdim=True)  # the first of several largest
        picks.append(pick)
        if turn + 1 < turns:
            barred.scatter_(1, pick, float("-inf"))
            state = take(state, pick)
    return pad_rows(torch.cat(picks, dim=1), counts)


def marked(order: Tensor, width: int) -> Tensor:
    """bool [B, width]: True at the tokens that ``order`` int64 [B, n] lists; -1 lists none."""
    found = torch.zeros(order.shape[0], width + 1, dtype=torch.bool, device=order.device)
    return found.scatter(1, order.masked_fill(order < 0, width), True)[:, :width]


@dataclass(frozen=True)
class Products:
    """Dot products of each row's vectors [B, N, D] with one another.

    Attributes:
        vectors: float32 [B, N, D].
        table: [B, N, N], or None where that is large or not wanted: then each is computed when it is asked for.
    """

    vectors: Tensor
    table: Tensor | None

    @classmethod
    def of(cls, vectors: Tensor, *, keep: bool = True) -> Products:
        """Of ``vectors``; ``keep``: whether a table may be kept."""
        small = keep and vectors.shape[0] * vectors.shape[1] ** 2 <= _TABLE**2
        return cls(vectors, torch.matmul(vectors, vectors.transpose(1, 2)) if small else None)

    def at(self, pick: Tensor) -> Tensor:
        """[B, N]: with the vectors ``pick`` int64 [B, 1]."""
        if self.table is not None:
            return self.table.gather(1, pick.unsqueeze(-1).expand(-1, -1, self.table.shape[2])).squeeze(1)
        one = self.vectors.gather(1, pick.unsqueeze(-1).expand(-1, -1, self.vectors.shape[2]))
        return torch.matmul(self.vectors, one.transpose(1, 2)).squeeze(-1)

    def blocks(self) -> Iterator[tuple[int, Tensor]]:
        """(number of its first vector, [B, n, N]) of all products, a block of vectors at a time."""
        rows, n = self.vectors.shape[:2]
        step = max(1, min(n, _TABLE * _TABLE // max(rows * n, 1)))
        for first in range(0, n, step):
            if self.table is not None:
                yield first, self.table[:, first : first + step]
            else:
                yield first, torch.matmul(self.vectors[:, first : first + step], self.vectors.transpose(1, 2))


def greedy_diverse(
    features: Tensor, sizes: Sequence[int], counts: Sequence[int], gain: Callable[[Tensor], Tensor]
) -> Tensor:
    """bool [B, N]: tokens chosen one after the other, each the one with the largest gain.

    ``gain`` maps float [B, N], every token's largest cosine with those already chosen (-1 while there are none), to
    float [B, N]. ``lambda nearest: -nearest`` is farthest-first from the first token (:func:`farthest_first` begins
    with the loneliest one); ``lambda nearest: a * scores - (1 - a) * nearest`` is maximal marginal relevance.

    Cost: O(N D) per chosen token; no N x N matrix.

    Args:
        features: [B, N, D].
        sizes: tokens of each row.
        counts: tokens to choose in each row, at most its size.
        gain: see above; must be finite.
    """
    products, width = Products.of(unit(features), keep=False), features.shape[1]
    free = within(sizes, width, features.device)
    start = products.vectors.new_full(free.shape, -1.0)
    order = greedy_order(
        start, gain, lambda nearest, pick: torch.maximum(nearest, products.at(pick)), free, counts
    )  # fmt: skip
    return marked(order, width)


def farthest_first(features: Tensor, sizes: Sequence[int], counts: Sequence[int]) -> Tensor:
    """int64 [B, max(counts)]: tokens in the order of greedy max-min of cosine distance; -1 past a row's count.

    The first is the token whose nearest other token is farthest, each further one the free token whose nearest chosen
    token is farthest (a 2-approximation of the most spread set). Copies of chosen tokens come last, lowest index first.

    Cost: O(N^2 D) once, then O(N) per chosen token; above 4096 tokens no N x N matrix is kept, and a turn is O(N D).

    Args:
        features: [B, N, D].
        sizes: tokens of each row.
        counts: tokens to choose in each row, at most its size.
    """
    products, width = Products.of(unit(features)), features.shape[1]
    free = within(sizes, width, features.device)
    places = torch.arange(width, device=features.device)
    closest: list[Tensor] = [torch.zeros_like(free[:, :0], dtype=torch.float32)]
    for first, block in products.blocks():
        itself = places[first : first + block.shape[1], None] == places
        others = block.masked_fill(itself | ~free.unsqueeze(1), -1.0)
        closest.append(others.amax(dim=-1).clamp(max=_SAME))
    start = torch.cat(closest, dim=1)

    def take(nearest: Tensor, pick: Tensor) -> Tensor:
        row = products.at(pick).clamp_(max=_SAME)
        return row if nearest is start else torch.maximum(nearest, row)

    return greedy_order(start, torch.neg, take, free, counts)


def _as_it_is(gain: Tensor) -> Tensor:
    return gain


def greedy_cover(
    affinity: Tensor,
    free: Tensor,
    counts: Sequence[int],
    weigh: Callable[[Tensor], Tensor] = _as_it_is,
) -> Tensor:
    """int64 [B, max(counts)]: tokens in the order of greedy coverage (facility location); -1 past a row's count.

    With S what is chosen, token j would add ``sum_u max(0, a_ju - max over i in S of a_iu)``; nothing is covered at
    first, so negative affinities never count.

    Cost: O(N M) per chosen token, in place.

    Args:
        affinity: [B, N, M]: how well each token covers each of M things; 0 where either is padding.
        free: bool [B, N]: tokens that may be chosen.
        counts: tokens to choose in each row.
        weigh: of the gains [B, N], those that decide; finite.
    """
    # What is not covered yet, instead of what is: one table, and a copy of a chosen token has exactly nothing to add.
    left = affinity.float().clamp(min=0)

    def take(left: Tensor, pick: Tensor) -> Tensor:
        return left.sub_(left.gather(1, pick.unsqueeze(-1).expand(-1, -1, left.shape[2]))).clamp_(min=0)

    return greedy_order(left, lambda left: weigh(left.sum(dim=-1)), take, free, counts)


def greedy_volume(vectors: Tensor, sizes: Sequence[int], counts: Sequence[int]) -> Tensor:
    """int64 [B, max(counts)]: tokens in the order of greedy volume; -1 past a row's count.

    Each is the token whose vector has the longest part outside the span of those chosen before: greedy maximisation of
    the determinant of their Gram matrix, which is the most probable set of a determinantal point process with that
    kernel. Where nothing but rounding is left of any (below 1e-5 of its own square), the lowest free index follows.

    Cost: O(N^2 D) once, then O(N t) in turn t (a row of the Cholesky factor); above 4096 tokens also O(N D).

    Args:
        vectors: [B, N, D].
        sizes: tokens of each row.
        counts: tokens to choose in each row, at most its size.

    Source: Chen et al., "Fast Greedy MAP Inference for Determinantal Point Process to Improve Recommendation
    Diversity", NeurIPS 2018.
    """
    products, (rows, width) = Products.of(vectors.float()), vectors.shape[:2]
    own = products.vectors.square().sum(dim=-1)
    spent = own * _SPENT
    factor = own.new_zeros(rows, max(counts, default=0), width)
    turn = 0

    def take(left: Tensor, pick: Tensor) -> Tensor:
        nonlocal turn
        known, size = factor[:, :turn], left.gather(1, pick)
        seen = torch.matmul(known.gather(2, pick.unsqueeze(1).expand(-1, turn, -1)).transpose(1, 2), known).squeeze(1)
        part = (products.at(pick) - seen) * torch.where(size > 0, size.rsqrt(), 0.0)
        factor[:, turn] = part
        turn += 1
        left = torch.addcmul(left, part, part, value=-1)
        return left.masked_fill(left <= spent, 0.0)

    return greedy_order(own, lambda left: left, take, within(sizes, width, vectors.device), counts)
