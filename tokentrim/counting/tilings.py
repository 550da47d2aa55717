"""Tilings: how an image of any size becomes pieces of the vision tower and tokens of the language model.

Pure integer geometry, without torch: plans, adapters and tests share it. Sizes are (height, width); pixels unless
they are said to be patches or tokens. Where published code rounds floating-point numbers, the same numbers are
rounded here in the same order, because a token more or less shifts everything behind it.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from tokentrim.errors import DataError, complaint

NOMINAL_SIZE = (672, 672)
"""Size of the image that a model's shape describes where nobody names one: the largest square of LLaVA-NeXT."""

_MAX_ASPECT = 200
_SHRINK_FROM = 1.1


@dataclass(frozen=True)
class Cut:
    """One image as the tower and the language model see it.

    Attributes:
        pieces: separately encoded pieces: thumbnail and tiles, or 1.
        tokens: tokens of one piece inside the tower (patches, and [CLS] where there is one).
        n_visual: visual tokens that reach the language model.
        n_structure: placeholders that are not visual tokens (line ends).
        rows: rows of the finest plane of visual tokens.
        cols: columns of that plane.
        projected: tokens that pass the projector.
        window_pairs: sum over attention windows of their tokens squared; 0 where no block has windows.
        note: the same in words.
    """

    pieces: int
    tokens: int
    n_visual: int
    n_structure: int
    rows: int
    cols: int
    projected: int
    window_pairs: int = 0
    note: str = ""

    @classmethod
    def whole(cls, rows: int, cols: int, merge: int, note: str, window_pairs: int = 0) -> Cut:
        """An image of one piece, of rows x cols visual tokens of merge x merge patches."""
        n = rows * cols
        return cls(1, n * merge**2, n, 0, rows, cols, n, window_pairs, note)


class Tiling(ABC):
    """What one model family does with the size of an image."""

    varies: ClassVar[bool] = True
    """Whether images of different sizes become different numbers of visual tokens."""
    asks: ClassVar[bool] = False
    """Whether somebody has to be asked about each size, which takes a while."""

    @abstractmethod
    def cut(self, height: int, width: int, images: int = 1) -> Cut:
        """What an image becomes.

        Args:
            height: of the image, >= 1.
            width: of the image, >= 1.
            images: images of the prompt, this one among them.

        Raises:
            DataError: when no image of this size is accepted.
        """

    def flops(self, height: int, width: int, images: int = 1) -> int | None:
        """FLOPs of the tower and the projector for such an image, where only counting them tells; None elsewhere."""
        return None

    def uncounted(self, height: int, width: int, images: int = 1) -> str:
        """Why :meth:`flops` are not known, where they would have to be counted; empty elsewhere."""
        return ""

    @staticmethod
    def require_size(height: int, width: int) -> None:
        """Refuse an image without pixels.

        Raises:
            DataError: when a side is shorter than a pixel.
        """
        if height < 1 or width < 1:
            raise DataError(complaint("the size of an image", "be at least 1x1 pixels", f"{height}x{width}", ""))


@dataclass(frozen=True)
class FixedGrid(Tiling):
    """Every image is brought to one size.

    Attributes:
        pixels: height and width that every image is brought to.
        side: patches along each side.
        cls: tokens of the tower beyond the patches.
        kept_cls: how many of these reach the language model.
    """

    pixels: int
    side: int
    cls: int = 0
    kept_cls: int = 0
    varies: ClassVar[bool] = False

    def cut(self, height: int, width: int, images: int = 1) -> Cut:
        """The same for every size."""
        self.require_size(height, width)
        n = self.side * self.side + self.kept_cls
        return Cut(
            pieces=1,
            tokens=self.side * self.side + self.cls,
            n_visual=n,
            n_structure=0,
            rows=self.side,
            cols=self.side,
            projected=n,
            note=f"this model brings every image to {self.pixels}x{self.pixels} pixels, so {height}x{width} pixels "
            f"also become {n} visual tokens",
        )


@dataclass(frozen=True)
class Assembled:
    """The tiles of one image put together, in patches.

    Attributes:
        tile_rows: tiles from top to bottom.
        tile_cols: tiles from left to right.
        top: patch rows of padding cut away above (and as many below).
        left: patch columns of padding cut away on the left (and as many on the right).
        height: patch rows that are left.
        width: patch columns that are left.
        rows: rows of tokens: ``height``, or fewer where the plane is shrunk.
        cols: columns of tokens.
    """

    tile_rows: int
    tile_cols: int
    top: int
    left: int
    height: int
    width: int
    rows: int
    cols: int

    @property
    def tiles(self) -> int:
        """Number of tiles."""
        return self.tile_rows * self.tile_cols


@dataclass(frozen=True)
class AnyResolution(Tiling):
    """A thumbnail, and the image padded to the best of some resolutions and cut into tiles.

    The tiles' features are put together again, the padding is cut away, and every row gets a line end.

    Attributes:
        pixels: height and width of a tile, and of the thumbnail.
        side: patches along each side of a tile.
        resolutions: (height, width) that an image may be brought to.
        cls: tokens of the tower beyond the patches; none of them reaches the language model.
        limit: where set, a plane of much more than ``limit`` tiles' tokens is shrunk to about that many.
        single: whether only an image that is alone in its prompt is tiled; others are one piece and one line end.
    """

    pixels: int
    side: int
    resolutions: tuple[tuple[int, int], ...]
    cls: int = 0
    limit: int | None = None
    single: bool = False

    def resolution(self, height: int, width: int) -> tuple[int, int]:
        """The resolution that an image is brought to: most of its pixels kept, then least padding, first in order."""
        self.require_size(height, width)

        def merit(target: tuple[int, int]) -> tuple[int, int]:
            scale = min(target[1] / width, target[0] / height)
            shown = min(int(width * scale) * int(height * scale), height * width)
            return shown, shown - target[0] * target[1]

        return max(self.resolutions, key=merit)  # the first of equals

    def assembled(self, height: int, width: int) -> Assembled:
        """The tiles of an image, put together and freed of padding."""
        target = self.resolution(height, width)
        tile_rows, tile_cols = target[0] // self.pixels, target[1] // self.pixels
        full_rows, full_cols = tile_rows * self.side, tile_cols * self.side
        top = left = 0
        if width / height > full_cols / full_rows:
            top = (full_rows - int(round(height * (full_cols / width), 7))) // 2
        else:
            left = (full_cols - int(round(width * (full_rows / height), 7))) // 2
        rows, cols = full_rows - 2 * top, full_cols - 2 * left
        kept_rows, kept_cols = rows, cols
        if self.limit is not None:
            ratio = math.sqrt(rows * cols / (self.limit * self.side**2))
            if ratio > _SHRINK_FROM:
                kept_rows, kept_cols = int(rows // ratio), int(cols // ratio)
        return Assembled(tile_rows, tile_cols, top, left, rows, cols, kept_rows, kept_cols)

    def pieces(self, height: int, width: int, images: int = 1) -> int:
        """Pieces that the tower encodes: the thumbnail and the tiles."""
        if self.single and images > 1:
            return 1
        target = self.resolution(height, width)
        return 1 + math.ceil(target[0] / self.pixels) * math.ceil(target[1] / self.pixels)

    def cut(self, height: int, width: int, images: int = 1) -> Cut:
        """Thumbnail and tiles, or one piece."""
        whole, size = self.side * self.side, f"{height}x{width} pixels"
        pieces = self.pieces(height, width, images)
        tokens = whole + self.cls
        if pieces == 1:
            note = f"of several images none is tiled: {size} become one piece of {whole} visual tokens and a line end"
            return Cut(1, tokens, whole, 1, self.side, self.side, whole, note=note)
        plane = self.assembled(height, width)
        target = self.resolution(height, width)
        n = plane.rows * plane.cols
        shrunk = "" if plane.rows == plane.height else f", shrunk from {plane.height}x{plane.width}"
        return Cut(
            pieces=pieces,
            tokens=tokens,
            n_visual=whole + n,
            n_structure=plane.rows,
            rows=plane.rows,
            cols=plane.cols,
            projected=pieces * whole,
            note=f"{size} fit best into {target[0]}x{target[1]}: a thumbnail of {whole} visual tokens, and "
            f"{plane.tile_rows}x{plane.tile_cols} tiles that leave {plane.rows}x{plane.cols} = {n} without padding"
            f"{shrunk}, with {plane.rows} line ends, which are no visual tokens",
        )


@dataclass(frozen=True)
class NativeResolution(Tiling):
    """Every image keeps its aspect ratio, and about its size within limits; patches are merged before the decoder.

    Attributes:
        patch: pixels along each side of a patch.
        merge: patches along each side that become one visual token.
        min_pixels: least area that an image is brought to.
        max_pixels: largest area.
        window: pixels along each side of an attention window of the blocks that have them; 0 = none has.
    """

    patch: int
    merge: int
    min_pixels: int
    max_pixels: int
    window: int = 0

    def with_limits(self, settings: Mapping[str, Any]) -> NativeResolution:
        """The same with the limits of an image processor's settings, where these name some.

        Known are ``min_pixels`` and ``max_pixels``, and a ``size`` with ``shortest_edge`` and ``longest_edge``, which
        are areas in spite of their names.
        """
        size: Any = settings.get("size")
        named: Mapping[str, Any] = size if isinstance(size, Mapping) else {}
        least = settings.get("min_pixels") or named.get("min_pixels") or named.get("shortest_edge") or self.min_pixels
        most = settings.get("max_pixels") or named.get("max_pixels") or named.get("longest_edge") or self.max_pixels
        return replace(self, min_pixels=int(least), max_pixels=int(most))

    def resized(self, height: int, width: int) -> tuple[int, int]:
        """The size that an image is brought to: multiples of a token's pixels, area within the limits."""
        self.require_size(height, width)
        if max(height, width) / min(height, width) > _MAX_ASPECT:
            raise DataError(
                complaint("an image", f"be at most {_MAX_ASPECT} times as long as wide", f"{height}x{width}",
                          "cut or pad it")
            )  # fmt: skip
        unit = self.patch * self.merge
        found = round(height / unit) * unit, round(width / unit) * unit
        area = found[0] * found[1]
        if area > self.max_pixels:
            scale = math.sqrt((height * width) / self.max_pixels)
            return max(unit, math.floor(height / scale / unit) * unit), max(
                unit, math.floor(width / scale / unit) * unit
            )
        if area < self.min_pixels:
            scale = math.sqrt(self.min_pixels / (height * width))
            return math.ceil(height * scale / unit) * unit, math.ceil(width * scale / unit) * unit
        return found

    def cut(self, height: int, width: int, images: int = 1) -> Cut:
        """One piece of as many patches as the resized image has."""
        tall, wide = self.resized(height, width)
        unit = self.patch * self.merge
        rows, cols = tall // unit, wide // unit
        return Cut.whole(
            rows,
            cols,
            self.merge,
            f"{height}x{width} pixels are resized to {tall}x{wide}: {rows}x{cols} = {rows * cols} visual tokens "
            f"of {unit}x{unit} pixels (limits {self.min_pixels} and {self.max_pixels} pixels)",
            self._pairs(rows) * self._pairs(cols),
        )

    def _pairs(self, tokens: int) -> int:
        """Sum of the squared lengths, in patches, of the windows along one side of ``tokens`` visual tokens."""
        if self.window == 0:
            return 0
        span = self.window // (self.patch * self.merge)
        full, rest = divmod(tokens, span)
        return self.merge**2 * (full * span**2 + rest**2)
