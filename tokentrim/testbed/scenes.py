"""Seeded renderer of the testbed's pictures: coloured glyphs on a noisy background.

A picture is 80 x 80 pixels, divided into 4 x 4 cells of 20 pixels; a canvas asks for another size or other
cells. A cell holds at most one object: a glyph of 10 x 10 pixels at a random offset, so that objects do not
line up with the model's 8-pixel patches.
Everything is drawn for a whole batch at once, because training renders every picture anew.
"""

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from tokentrim.testbed.vocabulary import COLORS, GLYPHS

Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]
Floats = NDArray[np.float32]

IMAGE_SIZE: Final = 80  # pixels
PATCH: Final = 8  # pixels
GRID: Final = IMAGE_SIZE // PATCH  # patches in a row
TOKENS: Final = GRID * GRID
CELLS: Final = 4  # cells in a row
CELL: Final = IMAGE_SIZE // CELLS  # pixels
GLYPH: Final = 10  # pixels
MAX_OBJECTS: Final = 10


@dataclass(frozen=True)
class Canvas:
    """A picture's size and its cells, in pixels. The cells begin at the top left; the rest is margin."""

    height: int = IMAGE_SIZE
    width: int = IMAGE_SIZE
    rows: int = CELLS
    columns: int = CELLS
    cell_height: int = CELL
    cell_width: int = CELL

    @property
    def most(self) -> int:
        """Most objects on this canvas; one cell stays empty, so that there is a place that holds nothing."""
        return min(MAX_OBJECTS, self.rows * self.columns - 1)


SQUARE: Final = Canvas()

RGB: Final[Floats] = np.array(
    [[230, 40, 40], [40, 200, 60], [50, 80, 240], [235, 220, 40], [180, 50, 210], [40, 215, 225]], np.float32
)

# Digits as seven rows of five dots, one number per row, the leftmost dot in the highest bit.
DIGIT_ROWS: Final = (
    (14, 17, 19, 21, 25, 17, 14), (4, 12, 4, 4, 4, 4, 14), (14, 17, 1, 6, 8, 16, 31), (30, 1, 1, 14, 1, 1,
    30), (2, 6, 10, 18, 31, 2, 2), (31, 16, 30, 1, 1, 17, 14), (6, 8, 16, 30, 17, 17, 14), (31, 1, 2, 4, 8, 8,
    8), (14, 17, 17, 14, 17, 17, 14), (14, 17, 17, 15, 1, 2, 12),
)  # fmt: skip


def _draw_glyphs() -> Bools:
    """Masks of all glyphs, [16, 10, 10], in the order of the vocabulary."""
    y, x = np.mgrid[0:GLYPH, 0:GLYPH] + 0.5 - GLYPH / 2
    radius = np.hypot(y, x)
    shapes = [
        radius <= 4.6,
        (abs(y) <= 4) & (abs(x) <= 4),
        (abs(y) <= 4) & (abs(x) <= (y + 4.5) * 0.55),
        (abs(y) <= 1.2) | (abs(x) <= 1.2),
        (radius <= 4.9) & (radius >= 2.9),
        abs(y) + abs(x) <= 4.8,
    ]
    rows = np.arange(GLYPH) * 7 // GLYPH
    columns = np.arange(8) * 5 // 8
    for bits in DIGIT_ROWS:
        dots = (np.array(bits)[:, None] >> np.arange(4, -1, -1)) & 1
        mask = np.zeros((GLYPH, GLYPH), np.bool_)
        mask[:, 1:9] = dots[rows][:, columns] == 1
        shapes.append(mask)
    return np.stack(shapes)


GLYPH_MASKS: Final = _draw_glyphs()


@dataclass(frozen=True)
class SceneObject:
    """One object. The box is half open, in pixels; row and column of the cell count from 0."""

    glyph: str
    color: str
    row: int
    column: int
    top: int
    left: int

    @property
    def bottom(self) -> int:
        """First pixel row below the object."""
        return self.top + GLYPH

    @property
    def right(self) -> int:
        """First pixel column to the right of the object."""
        return self.left + GLYPH


@dataclass(frozen=True)
class Scene:
    """One picture's objects in reading order."""

    objects: tuple[SceneObject, ...]
    canvas: Canvas = SQUARE


@dataclass(frozen=True)
class Scenes:
    """A batch of scenes as arrays [batch, slots]; objects in reading order, then unused slots."""

    present: Bools
    cell: Ints  # 0..15, row by row of four, whatever the canvas
    glyph: Ints
    color: Ints
    top: Ints  # pixels
    left: Ints
    canvas: Canvas = SQUARE

    @property
    def count(self) -> Ints:
        """Number of objects of each scene, [batch]."""
        return self.present.sum(1)

    def scene(self, index: int) -> Scene:
        """One scene of the batch."""
        objects = (self._object(index, int(slot)) for slot in np.flatnonzero(self.present[index]))
        return Scene(tuple(objects), self.canvas)

    def _object(self, index: int, slot: int) -> SceneObject:
        row, column = divmod(int(self.cell[index, slot]), CELLS)
        return SceneObject(
            GLYPHS[self.glyph[index, slot]],
            COLORS[self.color[index, slot]],
            row,
            column,
            int(self.top[index, slot]),
            int(self.left[index, slot]),
        )


def draw_scenes(rng: np.random.Generator, batch: int, fewest: int, most: int, canvas: Canvas = SQUARE) -> Scenes:
    """Random scenes with `fewest` to `most` objects (uniform), at most one per cell."""
    count = rng.integers(fewest, most + 1, batch)
    unused = canvas.rows * canvas.columns  # sorts behind every real cell
    order = np.argsort(rng.random((batch, unused)), axis=1)[:, :most]
    cell = np.sort(np.where(np.arange(most) < count[:, None], order, unused), axis=1)
    present = cell < unused
    cell = np.where(present, cell, 0)
    row, column = np.divmod(cell, canvas.columns)
    shape = (batch, most)
    return Scenes(
        present=present,
        cell=row * CELLS + column,
        glyph=rng.integers(0, len(GLYPHS), shape),
        color=rng.integers(0, len(COLORS), shape),
        top=row * canvas.cell_height + rng.integers(0, canvas.cell_height - GLYPH + 1, shape),
        left=column * canvas.cell_width + rng.integers(0, canvas.cell_width - GLYPH + 1, shape),
        canvas=canvas,
    )


def _background(rng: np.random.Generator, batch: int, canvas: Canvas) -> Floats:
    """Dark tinted gradient with four grey rectangles, [batch, height, width, 3]."""
    down = np.linspace(-1, 1, canvas.height, dtype=np.float32)
    across = np.linspace(-1, 1, canvas.width, dtype=np.float32)
    tilt = rng.uniform(-18, 18, (2, batch, 1, 1, 3)).astype(np.float32)
    image: Floats = rng.uniform(15, 75, (batch, 1, 1, 1)).astype(np.float32) + (
        tilt[0] * down[None, :, None, None] + tilt[1] * across[None, None, :, None]
    )
    largest = 13
    reach = np.arange(largest)
    for _ in range(4):
        height, width = rng.integers(2, largest + 1, (2, batch, 1))
        # Drawn for the square picture and stretched, so that every canvas takes the same random numbers.
        top, left = rng.integers(0, IMAGE_SIZE - largest, (2, batch, 1))
        top = top * (canvas.height - largest) // (IMAGE_SIZE - largest)
        left = left * (canvas.width - largest) // (IMAGE_SIZE - largest)
        inside = (reach < height)[:, :, None] & (reach < width)[:, None, :]
        shade = rng.uniform(30, 120, (batch, 1, 1, 1)).astype(np.float32)
        _paint(image, top + reach, left + reach, inside, shade)
    return image


def _paint(image: Floats, rows: Ints, columns: Ints, inside: Bools, color: Floats) -> None:
    """Colour the masked pixels of one window per picture; rows, columns [batch, n], inside [batch, n, n]."""
    where: Any = (np.arange(len(image))[:, None, None], rows[:, :, None], columns[:, None, :])
    image[where] = np.where(inside[..., None], color, image[where])


def render(rng: np.random.Generator, scenes: Scenes) -> NDArray[np.uint8]:
    """Draw the scenes, [batch, height, width, 3]; 80 x 80 pixels unless the canvas says otherwise."""
    batch, slots = scenes.cell.shape
    image = _background(rng, batch, scenes.canvas)
    reach = np.arange(GLYPH)
    for slot in range(slots):
        inside = GLYPH_MASKS[scenes.glyph[:, slot]] & scenes.present[:, slot, None, None]
        brightness = rng.uniform(0.85, 1.05, (batch, 1)).astype(np.float32)
        color = (RGB[scenes.color[:, slot]] * brightness)[:, None, None, :]
        _paint(image, scenes.top[:, slot, None] + reach, scenes.left[:, slot, None] + reach, inside, color)
    image += rng.standard_normal(image.shape, dtype=np.float32) * 6
    return np.clip(image, 0, 255).astype(np.uint8)
