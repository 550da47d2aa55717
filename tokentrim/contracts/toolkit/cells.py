"""Cells of the visual grid: side x side windows over each picture, also where they do not divide it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tokentrim.contracts.sites import Grid


@dataclass(frozen=True)
class Windows:
    """The cells of one sample, in the order of their representatives.

    Attributes:
        kept: int64 [M], ascending: the token nearest to the centre of each cell (the first of several).
        members: int64 [M, K]: the token at each of the K = kernel^2 places of a cell, row by row; -1 where the cell
            has none.
    """

    kept: Tensor
    members: Tensor


def along(place: Tensor, size: Tensor, parts: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(part, place in the part, squared distance from the part's middle in half steps), int64, along one axis.

    Args:
        place: 0 .. size - 1.
        size: places along the axis.
        parts: that it is cut into, at most ``size``; of equal size where they divide it, else one more or less.
    """
    size, parts = size.clamp(min=1), parts.clamp(min=1)
    part = place * parts // size
    first = -(-part * size // parts)
    last = -(-(part + 1) * size // parts) - 1
    return part, place - first, (2 * place - first - last) ** 2


def windows_of(grid: Grid, row: int, n: int, side: int, kernel: int) -> Windows | None:
    """The cells of one sample; host tensors in, host tensors out.

    A plane of R x C tokens has min(side, R) x min(side, C) cells. The token at (y, x) is in cell
    ``(floor(y r / R), floor(x c / C))``, at the place that it has counted from the cell's first row and column.

    Args:
        grid: on the host.
        row: sample of the batch.
        n: its visual tokens.
        side: cells along a side of a plane.
        kernel: places along a side of a cell.

    Returns:
        The cells, or None where a cell has more than ``kernel`` rows or columns.
    """
    placed = grid.row[row, :n] >= 0
    token = torch.arange(n)[placed]
    image, frame, plane, y, x, rows, cols = (
        part[row, :n][placed] for part in (grid.image, grid.frame, grid.plane, grid.row, grid.col, grid.rows, grid.cols)
    )
    r, c = rows.clamp(max=side), cols.clamp(max=side)
    (band, down, far_y), (column, across, far_x) = along(y, rows, r), along(x, cols, c)
    if bool((down >= kernel).any()) or bool((across >= kernel).any()):
        return None
    number = torch.unique(torch.stack([image, frame, plane, band, column], dim=1), dim=0, return_inverse=True)[1]
    cells = int(number.max()) + 1 if len(number) else 0
    members = torch.full((cells, kernel * kernel), -1, dtype=torch.int64)
    members[number, down * kernel + across] = token
    order = (far_y + far_x) * n + token  # nearest to the centre first, then the lower number
    nearest = torch.full((cells,), torch.iinfo(torch.int64).max).scatter_reduce(0, number, order, "amin")
    kept, by_place = torch.sort(nearest % max(n, 1))
    return Windows(kept, members[by_place])
