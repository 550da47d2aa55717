"""Where everything lies in a busy picture: grounds, large things that hide one another, and small print.

A picture is 128 x 128 pixels, 16 x 16 patches. Saliency and relevance are drawn independently: contrasts are random,
and questions ask about what is small and faint as often as about what is large.
"""

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from tokentrim.testbed.busy.vocabulary import GROUNDS, LARGE, SIGNS, SMALL
from tokentrim.testbed.vocabulary import COLORS, DIGITS

Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]
Floats = NDArray[np.float32]
Box = tuple[int, int, int, int]  # top, left, bottom, right in pixels, half open

SIZE: Final = 128  # pixels
PATCH: Final = 8  # pixels
GRID: Final = SIZE // PATCH
SIZES: Final = (24, 32, 40, 48)  # pixels of a large thing's side: 9 to 36 patches
SMALL_SIZE: Final = 9  # pixels
CORNER: Final = 32  # pixels of a corner's side that are of one material
CELL: Final = 32  # pixels of one of 4 x 4 places
_FREE_CORNER: Final = 16  # pixels at each corner that no large thing covers
_TRIES: Final = 24
_MOST_ALIKE: Final = 3  # small things of a kind
_MOST_HIDDEN: Final = 0.2  # of the smaller thing's box
_NOBODY: Final = -1
_SMALL_OR_SIGN: Final = 100


@dataclass(frozen=True)
class Fine:
    """Something inside one patch: a digit, a mark's colour or a letter. top, left: of its drawing, in pixels."""

    value: str
    top: int
    left: int

    @property
    def box(self) -> Box:
        """The patch that holds it."""
        top, left = self.top // PATCH * PATCH, self.left // PATCH * PATCH
        return top, left, top + PATCH, left + PATCH


@dataclass(frozen=True)
class Large:
    """A large thing. shown: the patches of which it shows in at least a third of the pixels."""

    kind: str
    color: str
    box: Box
    contrast: float
    digit: Fine | None = None
    mark: Fine | None = None
    shown: tuple[int, ...] = ()

    @property
    def size(self) -> int:
        """Side in pixels."""
        return self.box[2] - self.box[0]


@dataclass(frozen=True)
class Small:
    """A thing of 9 x 9 pixels, of which one patch shows most."""

    kind: str
    color: str
    box: Box
    contrast: float


@dataclass(frozen=True)
class Sign:
    """A word on a board, one letter to a patch."""

    letters: tuple[Fine, ...]
    dark: bool

    @property
    def word(self) -> str:
        """Its letters, separated by blanks, as answers spell it."""
        return " ".join(letter.value for letter in self.letters)

    @property
    def board(self) -> Box:
        """The board's box; a pixel more than the letters on every side."""
        first, last = self.letters[0], self.letters[-1]
        return max(0, first.top - 2), max(0, first.left - 2), first.top + 9, min(SIZE, last.left + 7)


@dataclass(frozen=True)
class BusyScene:
    """One picture: grounds of the four quarters, things largest first, small ones in reading order, signs downwards.

    owner: index of the large thing that shows at each pixel, -1 for ground. split: where the quarters meet.
    """

    grounds: tuple[str, str, str, str]
    split: tuple[int, int]
    large: tuple[Large, ...]
    small: tuple[Small, ...]
    signs: tuple[Sign, ...]
    owner: Ints

    @cached_property
    def corners(self) -> tuple[tuple[int, ...], ...]:
        """Patches of each corner that show nothing but ground."""
        free = (patches_of(self.owner) == _NOBODY).all(-1)
        side = CORNER // PATCH
        found: list[tuple[int, ...]] = []
        for quarter in range(4):
            row, column = (GRID - side) * (quarter // 2), (GRID - side) * (quarter % 2)
            places = (np.arange(row, row + side)[:, None] * GRID + np.arange(column, column + side)).ravel()
            found.append(tuple(places[free[places]].tolist()))
        return tuple(found)


def patches_of(pixels: NDArray[Any]) -> NDArray[Any]:
    """Pixels of a map [128, 128] by patch, [256, 64]."""
    return pixels.reshape(GRID, PATCH, GRID, PATCH).swapaxes(1, 2).reshape(GRID * GRID, PATCH * PATCH)


def corner_box(quarter: int) -> Box:
    """The corner that questions about a quarter's ground are about."""
    top, left = (SIZE - CORNER) * (quarter // 2), (SIZE - CORNER) * (quarter % 2)
    return top, left, top + CORNER, left + CORNER


def centre_patch(box: Box) -> int:
    """The patch that holds a box's centre."""
    return (box[0] + box[2]) // 2 // PATCH * GRID + (box[1] + box[3]) // 2 // PATCH


def patch_box(patch: int) -> Box:
    """The pixels of a patch."""
    top, left = patch // GRID * PATCH, patch % GRID * PATCH
    return top, left, top + PATCH, left + PATCH


def place_of(box: Box) -> tuple[int, int]:
    """Row and column of the place, of 4 x 4, in which a box's centre lies."""
    return (box[0] + box[2]) // 2 // CELL, (box[1] + box[3]) // 2 // CELL


def _shape(kind: str, size: int) -> Bools:
    """Silhouette of a large thing, [size, size]."""
    y, x = (np.mgrid[0:size, 0:size] + 0.5) / size
    u = x - 0.5
    match kind:
        case "house":
            mask = ((y > 0.4) & (abs(u) < 0.4)) | ((y <= 0.4) & (abs(u) < y * 1.25))
        case "tree":
            mask = (np.hypot(u / 0.5, (y - 0.34) / 0.34) < 1) | ((abs(u) < 0.12) & (y > 0.5))
        case "car":
            wheels = np.minimum(np.hypot(u - 0.25, y - 0.8), np.hypot(u + 0.25, y - 0.8)) < 0.16
            mask = ((y > 0.42) & (y < 0.8)) | ((abs(u) < 0.28) & (y > 0.14) & (y <= 0.42)) | wheels
        case "boat":
            hull = (y > 0.62) & (y < 0.95) & (abs(u) < 0.5 - (y - 0.62) * 0.6)
            mask = (
                hull | ((u > -0.08) & (u < 0.42 * (y - 0.03) / 0.5) & (y < 0.55)) | ((u < 0) & (u > -0.08) & (y < 0.7))
            )
        case "balloon":
            mask = (np.hypot(u / 0.44, (y - 0.4) / 0.4) < 1) | ((abs(u) < 0.13) & (y > 0.84))
        case _:
            mask = (y > 0.08) & (abs(u) < (y - 0.04) * 0.52) & ~((y > 0.6) & (abs(u) < (y - 0.6) * 0.35))
    return np.asarray(mask)


SHAPES: Final = {(kind, size): _shape(kind, size) for kind in LARGE for size in SIZES}


def _hidden(box: Box, other: Box) -> float:
    """Share of the smaller of two boxes that the other covers."""
    height = min(box[2], other[2]) - max(box[0], other[0])
    width = min(box[3], other[3]) - max(box[1], other[1])
    areas = ((b[2] - b[0]) * (b[3] - b[1]) for b in (box, other))
    return max(0, height) * max(0, width) / min(areas)


def _pick(rng: np.random.Generator, options: tuple[str, ...]) -> str:
    return options[int(rng.integers(len(options)))]


def _draw_large(rng: np.random.Generator) -> list[Large]:
    """Up to four large things of different kinds and sizes, the largest first; the smaller ones hide the larger."""
    sizes = sorted(rng.permutation(SIZES)[: int(rng.integers(1, 5))].tolist(), reverse=True)
    corners = [(SIZE - _FREE_CORNER) * i for i in (0, 1)]
    kept_free = [(top, left, top + _FREE_CORNER, left + _FREE_CORNER) for top in corners for left in corners]
    found: list[Large] = []
    for kind, size in zip(rng.permutation(LARGE).tolist(), sizes, strict=False):
        for top, left in rng.integers(0, SIZE - size + 1, (_TRIES, 2)).tolist():
            box = (top, left, top + size, left + size)
            hidden = max((_hidden(box, other.box) for other in found), default=0.0)
            if hidden <= _MOST_HIDDEN and not any(_hidden(box, corner) for corner in kept_free):
                found.append(Large(kind, _pick(rng, COLORS), box, rng.uniform(0.6, 1)))
                break
    return found


def _owners(large: list[Large]) -> Ints:
    owner = np.full((SIZE, SIZE), _NOBODY)
    for i, thing in enumerate(large):
        top, left, bottom, right = thing.box
        owner[top:bottom, left:right][SHAPES[thing.kind, thing.size]] = i
    return owner


def _inside(rng: np.random.Generator, patch: int, value: str, slack: tuple[int, int]) -> Fine:
    """Put something into a patch, with some pixels to spare."""
    row, column = divmod(patch, GRID)
    down, across = rng.integers(0, slack[0] + 1), rng.integers(0, slack[1] + 1)
    return Fine(value, row * PATCH + int(down), column * PATCH + int(across))


def _with_print(rng: np.random.Generator, large: list[Large], owner: Ints, taken: Bools) -> list[Large]:
    """Digits and marks on the large things, each in a patch that its thing fills."""
    by_patch = patches_of(owner)
    found: list[Large] = []
    for i, thing in enumerate(large):
        free = rng.permutation(np.flatnonzero(((by_patch == i).mean(1) >= 0.85) & ~taken)).tolist()
        digit = mark = None
        if free and rng.random() < 0.6:
            patch = free.pop()
            digit = _inside(rng, patch, _pick(rng, DIGITS), (1, 3))
            taken[patch] = True
        if free and rng.random() < 0.6:
            patch = free.pop()
            mark = _inside(rng, patch, _pick(rng, tuple(c for c in COLORS if c != thing.color)), (2, 2))
            taken[patch] = True
        found.append(replace(thing, digit=digit, mark=mark))
    return found


def _draw_signs(rng: np.random.Generator, owner: Ints, taken: Bools) -> list[Sign]:
    """No sign, one, or three on different rows, where they hide least."""
    wanted = int(rng.choice((0, 1, 3), p=(0.1, 0.45, 0.45)))
    covered = (patches_of(owner) != _NOBODY).mean(1).reshape(GRID, GRID)
    blocked = taken.reshape(GRID, GRID)
    signs: list[Sign] = []
    used_rows: list[int] = []
    for word in rng.permutation(SIGNS)[:wanted].tolist():
        best: tuple[float, int, int] | None = None
        for row, column in rng.integers((1, 1), (GRID - 1, GRID - len(word)), (_TRIES, 2)).tolist():
            # A free line around the board, and no two signs side by side.
            around = blocked[row - 1 : row + 2, column - 1 : column + len(word) + 1]
            corner = row in (1, GRID - 2) and (column == 1 or column + len(word) >= GRID - 1)
            if around.any() or corner or any(abs(row - other) < 2 for other in used_rows):
                continue
            hides = covered[row, column : column + len(word)].sum()
            if best is None or hides < best[0]:
                best = (hides, row, column)
        if best is None:
            continue
        _, row, column = best
        down, across = int(rng.integers(0, 2)), int(rng.integers(0, 4))
        letters = tuple(
            Fine(letter, row * PATCH + down, (column + i) * PATCH + across) for i, letter in enumerate(word)
        )
        signs.append(Sign(letters, bool(rng.random() < 0.5)))
        used_rows.append(row)
        blocked[row, column : column + len(word)] = True
    return sorted(signs, key=lambda sign: sign.letters[0].top)


def _draw_small(rng: np.random.Generator, busy: Bools) -> list[Small]:
    """Four to six small things, at most three of a kind, on free pixels; busy [128, 128] are taken."""
    kinds = rng.permutation(SMALL)[: int(rng.integers(2, 6))]
    found: list[Small] = []
    for kind in rng.permutation(np.repeat(kinds, _MOST_ALIKE))[: int(rng.integers(4, 7))].tolist():
        cells, off = rng.integers(1, GRID - 1, (_TRIES, 2)), rng.integers(-2, 2, (_TRIES, 2))
        for top, left in (cells * PATCH + off).tolist():
            around = busy[top - 1 : top + SMALL_SIZE + 1, left - 1 : left + SMALL_SIZE + 1]
            box = (top, left, top + SMALL_SIZE, left + SMALL_SIZE)
            if not around.any() and all(centre_patch(box) != centre_patch(other.box) for other in found):
                around[:] = True
                found.append(Small(kind, _pick(rng, COLORS), box, rng.uniform(0.6, 1)))
                break
    return sorted(found, key=lambda thing: (*place_of(thing.box), thing.box))


def _with_shown(large: list[Large], owner: Ints, signs: list[Sign], small: list[Small]) -> list[Large]:
    """The patches that show each large thing: neither what hides it nor its mark does."""
    seen = owner.copy()
    boxes = [*(sign.board for sign in signs), *(thing.box for thing in small)]
    for top, left, bottom, right in (*boxes, *(thing.mark.box for thing in large if thing.mark is not None)):
        seen[top:bottom, left:right] = _NOBODY
    by_patch = patches_of(seen)
    shares = ((by_patch == i).mean(1) for i in range(len(large)))
    return [
        replace(thing, shown=tuple(np.flatnonzero(share >= 1 / 3).tolist()))
        for thing, share in zip(large, shares, strict=True)
    ]


def draw_scene(rng: np.random.Generator) -> BusyScene:
    """Draw one random scene, in which something is to be seen of every large thing."""
    while True:
        scene = _draw_scene(rng)
        if all(thing.shown for thing in scene.large):
            return scene


def _draw_scene(rng: np.random.Generator) -> BusyScene:
    grounds = [_pick(rng, GROUNDS) for _ in range(4)]
    for quarter in (1, 2, 3):
        if rng.random() < 0.35:  # the same ground goes on
            grounds[quarter] = grounds[quarter - 1]
    large = _draw_large(rng)
    owner = _owners(large)
    taken = np.zeros(GRID * GRID, np.bool_)
    large = _with_print(rng, large, owner, taken)
    signs = _draw_signs(rng, owner, taken)
    busy = np.kron(taken.reshape(GRID, GRID), np.ones((PATCH, PATCH), np.bool_))
    for sign in signs:
        top, left, bottom, right = sign.board
        busy[top:bottom, left:right] = True
    small = _draw_small(rng, busy)
    large = _with_shown(large, owner, signs, small)
    down, across = rng.integers(44, 85, 2).tolist()
    first, second, third, fourth = grounds
    return BusyScene((first, second, third, fourth), (down, across), tuple(large), tuple(small), tuple(signs), owner)
