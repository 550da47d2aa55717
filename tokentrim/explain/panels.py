"""Panels: one rectangle of tokens over its picture, as scores, as what stayed, or as what went into what."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from tokentrim.contracts.token_places import Cells, Plane
from tokentrim.drawing.shade import shade
from tokentrim.drawing.sheet import framed, size_of
from tokentrim.drawing.style import FAINT, INK

MAP: Final = "viridis"
LIFE_MAP: Final = "magma"
GONE: Final = "#e9ebf0"
EMPTY: Final = "#f7f8fa"
_PIXELS: Final = 480
_EDGES: Final = 0.55  # how strongly the picture's lines are drawn over scores
_WIDE: Final = 10.0  # a ratio of the largest score to the median one from which the scale is logarithmic
_DECADES: Final = 1e4
# Light enough for a picture to show through, told apart in pairs by hue and lightness.
_GROUPS: Final = (
    "#e6550d", "#3182bd", "#31a354", "#756bb1", "#d6a400", "#d81b74", "#17a2b8", "#8c564b", "#7f9a00", "#5c3cc4",
    "#c0392b", "#0f766e",
)  # fmt: skip


def scale(scores: Iterable[float]) -> tuple[Any, str]:
    """(matplotlib norm, what to call it) of the finite ones of some scores: linear, or logarithmic where they spread.

    A logarithmic scale reaches four decades down at most; what lies below has the lowest colour.
    """
    from matplotlib.colors import LogNorm, Normalize

    finite = sorted(score for score in scores if math.isfinite(score))
    if not finite:
        return Normalize(0, 1), "linear"
    low, high, middle = finite[0], finite[-1], finite[len(finite) // 2]
    if low >= 0 and high > _WIDE * max(middle, high / _DECADES):
        positive = [score for score in finite if score > 0]
        return LogNorm(max(positive[0], high / _DECADES), high), "logarithmic"
    return Normalize(low, high if high > low else low + max(abs(low), 1e-12)), "linear"


class Panel:
    """One plane over its picture on one axis, in pixels of a picture that is ``_PIXELS`` long."""

    def __init__(self, axis: Any, image: Image.Image, cells: Cells, number: int) -> None:
        self.axis, self.image, self.cells, self.number = axis, image, cells, number
        self.plane: Plane = cells.planes[number]
        self.width, self.height = size_of(image, _PIXELS)
        self._extent = (0, self.width, self.height, 0)
        framed(axis, FAINT, 0.6)
        axis.set(xlim=(0, self.width), ylim=(self.height, 0))

    def _places(self, tokens: Iterable[int]) -> list[int]:
        return self.cells.inside(self.number, list(tokens))

    def _centre(self, place: int) -> tuple[float, float]:
        row, col = divmod(place, self.plane.cols)
        return (col + 0.5) * self.width / self.plane.cols, (row + 0.5) * self.height / self.plane.rows

    def picture(self) -> None:
        """The picture itself, with the borders of the patches."""
        self.axis.imshow(self.image, extent=self._extent, aspect="auto", interpolation=_smoothness(self.image))
        for row in range(1, self.plane.rows):
            self.axis.axhline(row * self.height / self.plane.rows, color="white", linewidth=0.35, alpha=0.45)
        for col in range(1, self.plane.cols):
            self.axis.axvline(col * self.width / self.plane.cols, color="white", linewidth=0.35, alpha=0.45)

    def heat(self, values: Mapping[int, float], norm: Any, colors: str = MAP) -> None:
        """Values of tokens in true colours, the picture's lines over them; tokens without a value in grey."""
        from matplotlib import colormaps

        grid = np.full(self.plane.rows * self.plane.cols, np.nan)
        for token, value in values.items():
            if self.cells.plane[token] == self.number:
                grid[self.cells.place[token]] = value if math.isfinite(value) else np.nan
        grid = grid.reshape(self.plane.rows, self.plane.cols)
        self.axis.set_facecolor(GONE)
        self.axis.imshow(
            np.ma.masked_invalid(grid), cmap=colormaps[colors], norm=norm, extent=self._extent, aspect="auto",
            interpolation="nearest",
        )  # fmt: skip
        light = np.nan_to_num(np.ma.filled(norm(np.ma.masked_invalid(grid)), 1.0), nan=1.0) > 0.62
        self.axis.imshow(_lines(self.image, light), extent=self._extent, aspect="auto", interpolation="bilinear")

    def kept(self, tokens: Iterable[int]) -> None:
        """The picture, dropped patches faded and kept ones outlined."""
        places = self._places(tokens)
        self._faded(places)
        self.outline(places=places, color=INK, halo="white", width=0.9)

    def _faded(self, places: Sequence[int]) -> None:
        """The picture, all patches faded but those at some places."""
        shown = shade(self.image, places, self.plane.rows, self.plane.cols, _PIXELS)
        self.axis.imshow(shown, extent=self._extent, aspect="auto")

    def outline(
        self, tokens: Iterable[int] = (), *, places: Sequence[int] | None = None, color: str = "white",
        halo: str = "#101010", width: float = 1.3,
    ) -> None:  # fmt: skip
        """The border between these tokens and all others."""
        from matplotlib.collections import LineCollection

        there = np.zeros((self.plane.rows + 2, self.plane.cols + 2), dtype=bool)
        for place in self._places(tokens) if places is None else places:
            row, col = divmod(place, self.plane.cols)
            there[row + 1, col + 1] = True
        x, y = self.width / self.plane.cols, self.height / self.plane.rows
        across = [
            ((left * x, row * y), (right * x, row * y))
            for row, line in enumerate(there[1:, 1:-1] != there[:-1, 1:-1])
            for left, right in _stretches(line)
        ]
        along = [
            ((col * x, upper * y), (col * x, lower * y))
            for col, line in enumerate((there[1:-1, 1:] != there[1:-1, :-1]).T)
            for upper, lower in _stretches(line)
        ]
        for ink, thick in ((halo, width + 1.3), (color, width)):
            self.axis.add_collection(
                LineCollection([*across, *along], colors=ink, linewidths=thick, capstyle="projecting", clip_on=False)
            )

    def cross_out(self, tokens: Iterable[int]) -> None:
        """A cross on each of these tokens."""
        places = self._places(tokens)
        if not places:
            return
        middles = np.array([self._centre(place) for place in places])
        bbox = self.axis.get_window_extent()
        points = 72 / self.axis.figure.dpi * min(bbox.width / self.plane.cols, bbox.height / self.plane.rows)
        for color, thick in (("#101010", 2.6), ("white", 1.3)):
            self.axis.scatter(*middles.T, marker="x", s=(0.55 * points) ** 2, color=color, linewidth=thick, zorder=4)

    def merged(self, into: Mapping[int, int], kept: Iterable[int], *, small: bool = False) -> None:
        """Groups that became one token in one colour, arrows from its members to it; kept tokens outlined."""
        from matplotlib.patches import Rectangle

        own = {a: b for a, b in into.items() if self.cells.plane[a] == self.cells.plane[b] == self.number}
        members: dict[int, list[int]] = {}
        for token, target in own.items():
            members.setdefault(self.cells.place[target], []).append(self.cells.place[token])
        alive = [*self._places(kept), *(place for group in members.values() for place in group)]
        self._faded(alive)
        groups = {centre: places for centre, places in members.items() if len(places) > 1}
        colors = _colored(groups, self.plane)
        x, y = self.width / self.plane.cols, self.height / self.plane.rows
        for centre, places in groups.items():
            for place in places:
                row, col = divmod(place, self.plane.cols)
                self.axis.add_patch(Rectangle((col * x, row * y), x, y, color=colors[centre], alpha=0.5, linewidth=0))
        self.outline(places=self._places(kept), color=INK, halo="white", width=0.4 if small else 0.9)
        moves = [(place, centre) for centre, places in groups.items() for place in places if place != centre]
        if moves and not small:  # in a small tile the colours must do
            tails, heads = np.array([[self._centre(end) for end in move] for move in moves]).swapaxes(0, 1)
            way = heads - tails
            self.axis.quiver(
                *tails.T, *way.T, color="white", angles="xy", scale_units="xy", scale=1.0, width=0.0055,
                headwidth=3.6, headlength=4, headaxislength=3.6, edgecolor=INK, linewidth=0.4, zorder=3,
            )  # fmt: skip

    def words(self, text: str) -> None:
        """A sentence instead of a picture."""
        self.axis.set_facecolor(EMPTY)
        self.axis.text(
            0.5, 0.5, text, transform=self.axis.transAxes, ha="center", va="center", fontsize=8.5, color=FAINT,
            linespacing=1.5,
        )  # fmt: skip


def color_bar(axis: Any, norm: Any, label: str, threshold: float | None = None, colors: str = MAP) -> None:
    """A vertical bar with its numbers; a line where the scores part."""
    from matplotlib import colormaps
    from matplotlib.cm import ScalarMappable
    from matplotlib.colorbar import Colorbar

    bar = Colorbar(axis, ScalarMappable(norm, colormaps[colors]))
    bar.outline.set(linewidth=0.6, edgecolor=FAINT)  # type: ignore[operator]
    bar.set_label(label, fontsize=8)
    axis.tick_params(labelsize=7.5, length=2.5, which="both")
    if threshold is not None and norm.vmin <= threshold <= norm.vmax:
        axis.axhline(threshold, color="white", linewidth=2.6)
        axis.axhline(threshold, color=INK, linewidth=1.2)
        axis.annotate(
            "kept from here", (0, threshold), xycoords=("axes fraction", "data"), xytext=(-3, 0),
            textcoords="offset points", rotation=90, ha="right", va=_beside(norm, threshold), fontsize=7, color=INK,
        )  # fmt: skip


def scale_bar(axis: Any, colors: str) -> None:
    """A horizontal bar of colours alone, from the lowest to the highest."""
    axis.imshow(np.linspace(0, 1, 256)[None], aspect="auto", cmap=colors)
    framed(axis, FAINT, 0.6)


def _beside(norm: Any, value: float) -> str:
    """Write above a mark in the lower half of the bar, below one in the upper half."""
    return "bottom" if float(norm(value)) < 0.5 else "top"


def _smoothness(image: Image.Image) -> str:
    return "nearest" if max(image.size) < _PIXELS else "antialiased"


def _lines(image: Image.Image, light: NDArray[np.bool_]) -> NDArray[np.float64]:
    """RGBA lines of a picture: dark over ``light`` cells, light over the others, nothing where the picture is plain."""
    width, height = (max(1, round(side)) for side in size_of(image, _PIXELS))
    resample = Image.Resampling.NEAREST if max(image.size) < _PIXELS else Image.Resampling.LANCZOS
    smooth = image.convert("RGB").resize((width, height), resample).filter(ImageFilter.GaussianBlur(1.6))
    pixels = np.asarray(smooth, dtype=np.float64)
    slopes: Callable[..., Any] = np.gradient
    steep = np.sqrt(sum((slope**2).sum(axis=2) for slope in slopes(pixels, axis=(0, 1))))
    strength = np.clip(steep / max(float(np.quantile(steep, 0.985)), 1.0) - 0.12, 0, 1) ** 1.2
    rows, cols = (np.arange(n) * cells // n for n, cells in zip(strength.shape, light.shape, strict=True))
    shade_of = np.where(light[rows][:, cols], 0.0, 1.0)
    return np.dstack([shade_of, shade_of, shade_of, strength * _EDGES])


def _stretches(line: NDArray[np.bool_]) -> list[tuple[int, int]]:
    """(first, one past the last) of each run of True."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], line.astype(np.int8), [0]])))
    return [(int(first), int(last)) for first, last in edges.reshape(-1, 2)]


def _colored(groups: Mapping[int, Sequence[int]], plane: Plane) -> dict[int, str]:
    """A colour for each group that none of its neighbours has, as far as there are colours."""
    owner = {place: centre for centre, places in groups.items() for place in places}
    chosen: dict[int, int] = {}
    for order, (centre, places) in enumerate(groups.items()):
        near = {owner.get(p + step) for p in places for step in (-1, 1, -plane.cols, plane.cols)}
        taken = {chosen[other] for other in near if other in chosen}
        free = [color for color in range(len(_GROUPS)) if color not in taken] or list(range(len(_GROUPS)))
        chosen[centre] = free[order % len(free)]
    return {centre: _GROUPS[color] for centre, color in chosen.items()}
