"""Groups of a row's visual tokens that decide for themselves, such as its images, frames and tiles.

Tensors by token, without reading the device, for ragged rows; a row gives the same result alone and in any batch.
:class:`tokentrim.Pictures` cuts a batch into its pictures instead, with their sizes on the host.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tokentrim.contracts.sites import Grid
from tokentrim.contracts.toolkit.merging import most_alike, rows_at
from tokentrim.contracts.toolkit.ranking import grouped_order, ranks_within

_MOST = 1 << 20
"""More images, frames and tiles than any prompt has."""


@dataclass(frozen=True)
class Groups:
    """The group of each visual token; int64 [B, N] each.

    Attributes:
        before: tokens of the row in earlier groups, a number of the group as well; in padding those of the row.
        size: tokens of the group.
        total: tokens of the row, [B, 1].
    """

    before: Tensor
    size: Tensor
    total: Tensor

    @classmethod
    def of(cls, number: Tensor, valid: Tensor) -> Groups:
        """Groups in the order of their numbers, int64 [B, N], any; ``valid`` is False in padding."""
        number = number.masked_fill(~valid, torch.iinfo(torch.int64).max).contiguous()
        ordered = number.sort(dim=1).values
        before = torch.searchsorted(ordered, number)
        size = torch.searchsorted(ordered, number, right=True) - before
        return cls(before, size, valid.sum(dim=1, keepdim=True))

    @classmethod
    def pictures(cls, grid: Grid, valid: Tensor, *, tiles: bool = True) -> Groups:
        """One group per image, frame and tile; a token without a place belongs to its image's thumbnail.

        Args:
            grid: of the current tokens.
            valid: bool [B, N], False in padding.
            tiles: whether an image's thumbnail and each of its tiles are groups; else the image is one.
        """
        number = grid.image.clamp(min=0) * _MOST + grid.frame.clamp(min=0)
        return cls.of(number * _MOST + (grid.tile.clamp(min=0) if tiles else 0), valid)

    def within(self, number: Tensor, valid: Tensor) -> Groups:
        """Groups of these groups: by ``number`` int64 [B, N], -1 or more, in the token's own group."""
        return Groups.of(self.before * (_MOST * _MOST) + number, valid)

    def share(self, counts: Sequence[int], *, among: Sequence[int] | None = None) -> Tensor:
        """int64 [B, N]: what its group has of ``counts`` of each row, in proportion to its tokens, exact in sum.

        With m of the row's M tokens in earlier groups and s in this one, ``floor((m + s) c / M) - floor(m c / M)``.

        Args:
            counts: what is shared out in each row, at most the row's tokens (or ``among``).
            among: where given, ``counts`` are shared out among the shares of these larger ones, and never exceed them.
        """
        begin, end, total = self.before, self.before + self.size, self.total.clamp(min=1)
        for amounts in (counts,) if among is None else (among, counts):
            amount = torch.tensor(list(amounts), device=total.device, dtype=torch.int64).unsqueeze(1)
            begin, end = begin * amount // total, end * amount // total
            total = amount.clamp(min=1)
        return end - begin

    def rank(self, scores: Tensor) -> Tensor:
        """int64 [B, N]: place of each token in its own group, 0 for the highest score; ties go to the lower index."""
        return ranks_within(scores, self.before)

    def at_rank(self, scores: Tensor, rank: Tensor) -> Tensor:
        """[B, N]: the score of the token that :meth:`rank` puts at place ``rank`` [B, N] of the token's own group."""
        ordered = torch.empty_like(scores).scatter_(1, grouped_order(scores, self.before), scores)
        return ordered.gather(1, (self.before + rank).clamp(max=scores.shape[1] - 1))

    def count(self, mask: Tensor) -> Tensor:
        """int64 [B, N]: how many tokens of the token's own group are in ``mask`` bool [B, N]."""
        order = self.before.argsort(dim=1, stable=True)
        running = torch.nn.functional.pad(mask.long().gather(1, order).cumsum(dim=1), (1, 0))
        return running.gather(1, self.before + self.size) - running.gather(1, self.before)

    def nearest(self, vectors: Tensor, chosen: Tensor, most: int) -> Tensor:
        """int64 [B, N]: the chosen token of its group that each token is most like, by cosine; N where there is none.

        Cost: O(N most D), a block of tokens at a time.

        Args:
            vectors: [B, N, D]; of equal cosines the lowest index counts.
            chosen: bool [B, N].
            most: how many are chosen in a row at most.
        """
        width = chosen.shape[1]
        if not most:
            return torch.full_like(self.before, width)
        index = torch.argsort((~chosen).byte(), dim=1, stable=True)[:, :most]
        groups = self.before.gather(1, index).masked_fill(~chosen.gather(1, index), -1)
        cosines, found = most_alike(vectors, rows_at(vectors, index), self.before, groups)
        return index.gather(1, found).masked_fill(cosines == -2.0, width)
