"""Paint a busy scene: grounds, clutter, large things, small print, noise. About two milliseconds a picture."""

from functools import cache
from typing import Final

import numpy as np
from numpy.typing import NDArray

from tokentrim.testbed.busy.scenes import SHAPES, SIZE, SMALL_SIZE, Bools, BusyScene, Fine, Floats
from tokentrim.testbed.busy.vocabulary import GROUNDS, SMALL
from tokentrim.testbed.scenes import DIGIT_ROWS, RGB
from tokentrim.testbed.vocabulary import COLORS, DIGITS

_TILE: Final = 192  # pixels of a texture's side, of which a picture shows a random part
_NOISE: Final = 5.0
_GROUND_RGB: Final = {
    "grass": (92, 120, 66), "sand": (188, 172, 128), "water": (70, 96, 130), "brick": (140, 92, 78),
    "snow": (212, 216, 222), "soil": (74, 62, 54),
}  # fmt: skip
# Letters as seven rows of five dots, like the digits.
_LETTER_ROWS: Final = {
    "a": (14, 17, 17, 31, 17, 17, 17), "c": (14, 17, 16, 16, 16, 17, 14), "e": (31, 16, 16, 30, 16, 16, 31),
    "h": (17, 17, 17, 31, 17, 17, 17), "l": (16, 16, 16, 16, 16, 16, 31), "n": (17, 17, 25, 21, 19, 17, 17),
    "o": (14, 17, 17, 17, 17, 17, 14), "p": (30, 17, 17, 30, 16, 16, 16), "r": (30, 17, 17, 30, 20, 18, 17),
    "s": (15, 16, 16, 14, 1, 1, 30), "t": (31, 4, 4, 4, 4, 4, 4), "u": (17, 17, 17, 17, 17, 17, 14),
}  # fmt: skip


def _dots(rows: tuple[int, ...]) -> Bools:
    return np.asarray((np.array(rows)[:, None] >> np.arange(4, -1, -1)) & 1 == 1)


GLYPHS: Final = {name: _dots(rows) for name, rows in (*_LETTER_ROWS.items(), *zip(DIGITS, DIGIT_ROWS, strict=True))}


def _small_shapes() -> dict[str, Bools]:
    y, x = np.mgrid[0:SMALL_SIZE, 0:SMALL_SIZE] - SMALL_SIZE // 2
    radius = np.hypot(y, x)
    lobes = np.minimum(np.hypot(y + 1.6, x - 2.1), np.hypot(y + 1.6, x + 2.1)) <= 2.4
    shapes = (
        abs(y) * abs(x) <= 1.2,
        lobes | ((y >= -1) & (abs(x) + y <= 4)),
        (radius <= 4.4) & (radius >= 2.4),
        (abs(abs(y) - abs(x)) <= 1) & (radius <= 5.2),
        (radius <= 4.5) & (np.hypot(y + 0.5, x - 2.6) >= 3.4),
        ((radius >= 0) & (np.hypot(y + 2.4, x) <= 2.3))
        | ((abs(x) <= 0.5) & (y >= 0))
        | ((x > 0) & (x <= 3) & (y >= 3)),
    )
    return {name: np.asarray(shape) for name, shape in zip(SMALL, shapes, strict=True)}


SMALL_SHAPES: Final = _small_shapes()


@cache
def _texture(name: str) -> Floats:
    """One material, [192, 192, 3], the same in every run."""
    rng = np.random.default_rng([5, GROUNDS.index(name)])
    y, x = np.mgrid[0:_TILE, 0:_TILE].astype(np.float32)
    coarse = np.kron(rng.normal(size=(_TILE // 6, _TILE // 6)), np.ones((6, 6)))
    fine = rng.normal(size=(_TILE, _TILE))
    match name:
        case "grass":
            pattern = 14 * np.kron(rng.normal(size=(_TILE // 4, _TILE)), np.ones((4, 1)))
        case "sand":
            pattern = 10 * fine + 4 * coarse
        case "water":
            pattern = 16 * np.sin(y / 2.2 + 1.5 * np.sin(x / 9)) + 3 * coarse
        case "brick":
            joint = (y % 6 < 1) | ((x + 6 * (y // 6 % 2)) % 12 < 1)
            pattern = np.where(joint, 34, 4 * coarse)
        case "snow":
            pattern = 4 * coarse + 2 * fine
        case _:
            pattern = 12 * coarse + 6 * fine
    return (np.array(_GROUND_RGB[name]) + pattern[..., None]).astype(np.float32)


def _surface(kind: str, size: int) -> Floats:
    """How light a large thing's material is at each pixel, [size, size, 1]: any part of a thing tells its kind."""
    y, x = np.mgrid[0:size, 0:size]
    match kind:
        case "house":
            light = np.where(y % 4 < 1, 0.72, 1.0)
        case "tree":
            leaves = np.random.default_rng(6).uniform(0.7, 1.15, (size // 2, size // 2))
            light = np.kron(leaves, np.ones((2, 2)))
        case "boat":
            light = np.where(x % 4 < 1, 0.72, 1.0)
        case "balloon":
            light = np.where(x % 8 < 4, 0.82, 1.05)
        case "tent":
            light = np.where((x + y) % 6 < 2, 0.76, 1.0)
        case _:
            light = np.ones((size, size))  # a car is smooth
    return light[..., None].astype(np.float32)


SURFACES: Final = {(kind, size): _surface(kind, size) for kind, size in SHAPES}


def _ground(rng: np.random.Generator, scene: BusyScene) -> Floats:
    line = np.arange(SIZE)
    waves = rng.uniform((2, 8, 0), (5, 20, 6.3), (2, 3))
    below = line[:, None] > scene.split[0] + waves[0, 0] * np.sin(line / waves[0, 1] + waves[0, 2])
    beside = line[None, :] > scene.split[1] + waves[1, 0] * np.sin(line[:, None] / waves[1, 1] + waves[1, 2])
    image = np.empty((SIZE, SIZE, 3), np.float32)
    for quarter, name in enumerate(scene.grounds):
        top, left = rng.integers(0, _TILE - SIZE, 2)
        here = (below == (quarter // 2 == 1)) & (beside == (quarter % 2 == 1))
        light = np.float32(rng.uniform(0.85, 1.12))  # it falls differently on every quarter
        np.copyto(image, _texture(name)[top : top + SIZE, left : left + SIZE] * light, where=here[..., None])
    return image


def _blend(image: Floats, top: int, left: int, mask: Bools, color: Floats, share: float) -> None:
    """Mix a colour into the masked pixels of a window."""
    window = image[top : top + mask.shape[0], left : left + mask.shape[1]]
    window[mask] += (color - window[mask]) * np.float32(share)


def _clutter(rng: np.random.Generator, image: Floats) -> None:
    """Grey patches and sticks that mean nothing."""
    for _ in range(int(rng.integers(5, 10))):
        height, width = rng.integers((2, 2), (14, 14)) if rng.random() < 0.6 else rng.permutation((1, 20))
        top, left = rng.integers(0, SIZE - 20, 2).tolist()
        mask = np.ones((int(height), int(width)), np.bool_)
        _blend(image, top, left, mask, np.full(3, rng.uniform(40, 210), np.float32), rng.uniform(0.3, 0.8))


def _print(image: Floats, fine: Fine, mask: Bools, color: Floats, share: float) -> None:
    _blend(image, fine.top, fine.left, mask, color, share)


def render(rng: np.random.Generator, scene: BusyScene) -> NDArray[np.uint8]:
    """Draw a scene, [128, 128, 3]."""
    image = _ground(rng, scene)
    _clutter(rng, image)
    white, black = np.full(3, 245, np.float32), np.full(3, 15, np.float32)
    for i, thing in enumerate(scene.large):
        top, left, bottom, right = thing.box
        mask = SHAPES[thing.kind, thing.size]
        shown = scene.owner[top:bottom, left:right] == i
        color = RGB[COLORS.index(thing.color)] * np.float32(rng.uniform(0.85, 1.0))
        _blend(image, top, left, shown, (color * SURFACES[thing.kind, thing.size])[shown], thing.contrast)
        inner = mask.copy()
        inner[1:-1, 1:-1] = mask[:-2, 1:-1] & mask[2:, 1:-1] & mask[1:-1, :-2] & mask[1:-1, 2:]
        edge = np.zeros_like(mask)
        edge[1:-1, 1:-1] = ~inner[1:-1, 1:-1]
        _blend(image, top, left, shown & edge, black, 0.6)
    for _ in range(2):  # twigs hide a line of whatever is there; small print is above them
        top, left = rng.integers(0, SIZE - 30, 2).tolist()
        mask = np.ones((30, 1) if rng.random() < 0.5 else (1, 30), np.bool_)
        _blend(image, top, left, mask, np.full(3, rng.uniform(40, 90), np.float32), 0.8)
    block = np.ones((6, 6), np.bool_)
    for thing in scene.large:
        if thing.digit is not None:
            ink = black if thing.color in ("yellow", "cyan", "green") else white
            _print(image, thing.digit, GLYPHS[thing.digit.value], ink, rng.uniform(0.7, 1))
        if thing.mark is not None:
            _print(image, thing.mark, block, RGB[COLORS.index(thing.mark.value)], rng.uniform(0.75, 1))
    for sign in scene.signs:
        top, left, bottom, right = sign.board
        board, ink = (black, white) if sign.dark else (white, black)
        _blend(image, top, left, np.ones((bottom - top, right - left), np.bool_), board, 0.9)
        strength = rng.uniform(0.6, 1)
        for letter in sign.letters:
            _print(image, letter, GLYPHS[letter.value], ink, strength)
    for thing in scene.small:
        color = RGB[COLORS.index(thing.color)]
        backing = np.ones((SMALL_SIZE, SMALL_SIZE), np.bool_)
        _blend(image, thing.box[0], thing.box[1], backing, black, 0.5)
        _blend(image, thing.box[0], thing.box[1], SMALL_SHAPES[thing.kind], color, thing.contrast)
    image += rng.standard_normal(image.shape, dtype=np.float32) * np.float32(_NOISE)
    return np.clip(image, 0, 255).astype(np.uint8)
