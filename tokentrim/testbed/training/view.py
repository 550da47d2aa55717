"""How a model sees a picture of one size: its visual tokens, which pixels each covers, and their positions."""

from dataclasses import dataclass
from functools import cached_property
from typing import Final

import numpy as np
import torch
from torch import Tensor

from tokentrim.testbed.scenes import GLYPH, GRID, PATCH, SQUARE, Bools, Canvas, Floats, Ints, Scenes
from tokentrim.testbed.vocabulary import BEGIN, IDS, USER


@dataclass(frozen=True, eq=False)
class View:
    """A canvas through a model's eyes. Visual tokens are in the order in which the language model gets them.

    boxes: pixels that a token covers, [tokens, 4] as top, left, bottom, right, half open; empty for structure.
    plane: 0 for the whole picture; 1 for the finer plane out of its tiles, where there are any.
    structure: tokens that show nothing and must stay, such as ends of lines.
    tile: the tower's input that a token comes from.
    prefix: positions of all that stands before the question, [axes, start + tokens + end].
    """

    canvas: Canvas
    boxes: Floats
    plane: Ints
    structure: Bools
    tile: Ints
    start: tuple[int, ...]
    end: tuple[int, ...]
    prefix: Tensor

    @property
    def tokens(self) -> int:
        """Visual tokens, structure included."""
        return len(self.boxes)

    @cached_property
    def pictorial(self) -> int:
        """Visual tokens that show something: those that may be dropped."""
        return int((~self.structure).sum())

    @cached_property
    def fine(self) -> Bools:
        """Tokens of the finest plane, in which objects are told apart, [tokens]."""
        return (self.plane == self.plane.max()) & ~self.structure

    @cached_property
    def coarse(self) -> int:
        """Tokens of the coarse plane, where there are two."""
        return int((~self.fine & ~self.structure).sum())

    @cached_property
    def grid(self) -> tuple[Ints, Ints, Ints, Ints]:
        """Row and column of every token in its plane, and the plane's rows and columns; -1 for structure."""
        row, column, rows, columns = (np.full(self.tokens, -1) for _ in range(4))
        for plane in range(int(self.plane.max()) + 1):
            here = (self.plane == plane) & ~self.structure
            for place, amount, side in ((row, rows, 0), (column, columns, 1)):
                edges, place[here] = np.unique(self.boxes[here, side], return_inverse=True)
                amount[here] = len(edges)
        return row, column, rows, columns

    @property
    def length(self) -> int:
        """Tokens before the question."""
        return self.prefix.shape[1]

    @cached_property
    def text_from(self) -> int:
        """Position of the question's first token, the same on every axis."""
        return int(self.prefix.max()) + 1

    @cached_property
    def cell_row(self) -> Tensor:
        """Row of the cell in which each token's centre lies, [tokens]; the nearest one in the margin."""
        return self._cell(0, self.canvas.cell_height, self.canvas.rows)

    @cached_property
    def cell_column(self) -> Tensor:
        """Column of the cell in which each token's centre lies, [tokens]; the nearest one in the margin."""
        return self._cell(1, self.canvas.cell_width, self.canvas.columns)

    def _cell(self, side: int, size: int, cells: int) -> Tensor:
        centre = (self.boxes[:, side] + self.boxes[:, side + 2]) / 2
        return torch.from_numpy(np.clip(centre // size, 0, cells - 1).astype(np.int64))


def raster_boxes(rows: int, columns: int, height: float, width: float, top: float = 0, left: float = 0) -> Floats:
    """Boxes of a grid of equal tokens in raster order, [rows * columns, 4]."""
    row, column = np.divmod(np.arange(rows * columns), columns)
    corners = [top + row * height, left + column * width, top + (row + 1) * height, left + (column + 1) * width]
    return np.stack(corners, 1).astype(np.float32)


def overlap(scenes: Scenes, view: View) -> Floats:
    """Pixels of every object's box inside every token, [batch, slots, tokens]; 0 for unused slots."""
    top, left, bottom, right = (view.boxes[:, i] for i in range(4))

    def along(start: Ints, low: Floats, high: Floats) -> Floats:
        begin = start[..., None].astype(np.float32)
        return np.maximum(np.minimum(begin + GLYPH, high) - np.maximum(begin, low), 0)

    area = along(scenes.top, top, bottom) * along(scenes.left, left, right)
    return (area * scenes.present[..., None]).astype(np.float32)


def holds_centre(scenes: Scenes, view: View) -> Bools:
    """Tokens that hold an object's centre pixel, [batch, slots, tokens]: one in every plane."""
    top, left, bottom, right = (view.boxes[:, i] for i in range(4))
    y, x = (scenes.top + GLYPH // 2)[..., None], (scenes.left + GLYPH // 2)[..., None]
    return (y >= top) & (y < bottom) & (x >= left) & (x < right) & scenes.present[..., None]


def fine_centre(scenes: Scenes, view: View) -> Ints:
    """The token of the finest plane that holds each object's centre, [batch, slots]."""
    return (holds_centre(scenes, view) & view.fine).argmax(2)


def flat_view(canvas: Canvas, start: tuple[int, ...], end: tuple[int, ...], prefix: Tensor) -> View:
    """A canvas as one grid of tokens, all of which show something; see :class:`View`."""
    boxes = raster_boxes(canvas.height // PATCH, canvas.width // PATCH, PATCH, PATCH)
    zeros = np.zeros(len(boxes), np.int64)
    return View(canvas, boxes, zeros, zeros.astype(np.bool_), zeros, start, end, prefix)


# The plain LLaVA's: one picture, one grid.
SQUARE_VIEW: Final = flat_view(SQUARE, (IDS[BEGIN], IDS[USER]), (), torch.arange(2 + GRID * GRID)[None])
