"""Spans: intervals of visual tokens, in raster order, that hold the neighbourhoods of blocks of them."""

from __future__ import annotations

from dataclasses import dataclass

_LEAST_BLOCK = 96
"""Whole grid rows, at least this many tokens: smaller blocks leave more out, larger ones compute faster."""


@dataclass(frozen=True)
class Spans:
    """One interval for each block of visual tokens, wide enough for the neighbours of every token of the block.

    Attributes:
        block: tokens per block (the last one may be shorter).
        first: [blocks], first token of each interval.
        width: tokens of the widest interval; every block computes this many.
        n: visual tokens.
    """

    block: int
    first: tuple[int, ...]
    width: int
    n: int

    @property
    def pairs(self) -> int:
        """Pairs of visual tokens that the blocks compute, in the convention in which causal attention counts n^2.

        Causal attention sees half of what it counts, so what blocks see counts twice.
        """
        return min(2 * self.n * self.width, self.n**2)

    @classmethod
    def raster(cls, rows: int, cols: int, planes: int, radius: int) -> Spans:
        """The spans of a prompt with so many pictures of ``rows`` x ``cols`` tokens.

        Args:
            rows: grid rows of a picture.
            cols: tokens of a grid row.
            planes: pictures.
            radius: a token's neighbours lie at most this many rows away in its picture.
        """
        size = rows * cols
        n, block = planes * size, block_of(planes * size, cols)
        first: list[int] = []
        last: list[int] = []
        for start in range(0, n, block):
            begin, end = start, min(start + block, n) - 1
            first.append(begin // size * size + max(0, begin % size // cols - radius) * cols)
            last.append(end // size * size + min(rows, end % size // cols + radius + 1) * cols - 1)
        return cls.over(block, first, last, n)

    @classmethod
    def over(cls, block: int, first: list[int], last: list[int], n: int) -> Spans:
        """The spans of blocks whose neighbours lie between ``first`` and ``last``, both [blocks]."""
        width = max((b + 1 - a for a, b in zip(first, last, strict=True)), default=0)
        return cls(block, tuple(min(a, n - width) for a in first), width, n)


def block_of(n: int, cols: int, least: int = _LEAST_BLOCK) -> int:
    """Tokens per block of ``n`` visual tokens: whole grid rows of ``cols`` tokens, at least ``least`` tokens."""
    return max(1, min(n, cols * -(-least // max(cols, 1))))
