"""What the any-resolution families share: places and attention of a thumbnail, assembled tiles and line ends."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from tokentrim import (
    NOMINAL_SIZE,
    AdapterError,
    AnyResolution,
    Assembled,
    Encoding,
    ModelShape,
    Places,
    complaint,
)


def resolutions_of(pinpoints: Any) -> tuple[tuple[int, int], ...]:
    """Resolutions as a config names them, (height, width) in pixels."""
    return tuple((int(height), int(width)) for height, width in pinpoints)


def with_resolutions(shape: ModelShape, pinpoints: Any) -> ModelShape:
    """``shape`` with other resolutions for images; the same where ``pinpoints`` is None."""
    vision = shape.vision
    if pinpoints is None or vision is None or not isinstance(vision.tiling, AnyResolution):
        return shape
    changed = replace(vision, tiling=replace(vision.tiling, resolutions=resolutions_of(pinpoints)))
    return replace(shape, vision=changed.for_image(*NOMINAL_SIZE))


def sizes_of(encoding: Encoding) -> list[tuple[int, int]]:
    """(height, width) in pixels of every image of an encoding.

    Raises:
        UnsupportedError: when they are not known, because the images were encoded outside the context.
    """
    given: Any = encoding.argument("image_sizes")
    rows: list[list[int]] = given.tolist() if isinstance(given, Tensor) else [list(size) for size in given]
    return [(int(height), int(width)) for height, width in rows]


def together_of(encoding: Encoding) -> list[int]:
    """For every image of an encoding, how many images its prompt has; 1 where nobody says."""
    given: Any = encoding.arguments.get("batch_num_images")
    if given is None:
        return [1] * len(encoding.lengths)
    numbers = [int(number) for number in (given.tolist() if isinstance(given, Tensor) else given)]
    return [number for number in numbers for _ in range(number)]


def places(tiling: AnyResolution, encoding: Encoding, item: int) -> Places:
    """Thumbnail (plane 0), then assembled tiles (plane 1) with a line end behind every row.

    Raises:
        AdapterError: when the geometry does not give the number of features that the model made.
    """
    height, width = sizes_of(encoding)[item]
    thumbnail = Places.raster(tiling.side, tiling.side)
    if tiling.pieces(height, width, together_of(encoding)[item]) == 1:
        found = Places.joined([thumbnail, Places.nowhere(1, structure=True)])
    else:
        found = Places.joined([thumbnail, _plane(tiling, tiling.assembled(height, width))])
    return checked(f"an image of {height}x{width} pixels", found, encoding, item)


def _plane(tiling: AnyResolution, plane: Assembled) -> Places:
    """The assembled tiles, row by row, each with its line end."""
    row = torch.arange(plane.rows).unsqueeze(1).expand(-1, plane.cols + 1)
    col = torch.arange(plane.cols + 1).expand(plane.rows, -1)
    # Where the plane was shrunk, a token belongs to the tile that its centre lies in.
    y = ((2 * row + 1) * plane.height // (2 * plane.rows) + plane.top) // tiling.side
    x = ((2 * col + 1) * plane.width // max(2 * plane.cols, 1) + plane.left) // tiling.side
    ends = col == plane.cols

    def marked(values: Tensor) -> Tensor:
        return values.masked_fill(ends, -1).flatten()

    return Places(
        frame=marked(torch.zeros_like(row)),
        plane=marked(torch.ones_like(row)),
        tile=marked(1 + y * plane.tile_cols + x),
        row=marked(row),
        col=marked(col),
        rows=marked(torch.full_like(row, plane.rows)),
        cols=marked(torch.full_like(row, plane.cols)),
        structure=ends.flatten(),
    )


def arrange(tiling: AnyResolution, encoding: Encoding, rows: Sequence[Tensor]) -> Tensor:
    """Attention per piece [pieces, H, tokens], packed like the features: float [H, placeholders]; 0 at line ends."""
    side = tiling.side
    maps = torch.cat([squares(piece, side) for piece in rows])
    found: list[Tensor] = []
    start = 0
    together = together_of(encoding)
    for item, (height, width) in enumerate(sizes_of(encoding)):
        number = tiling.pieces(height, width, together[item])
        pieces = maps[start : start + number]
        start += number
        found.append(pieces[0].flatten(1))
        if number == 1:
            found.append(pieces.new_zeros(pieces.shape[1], 1))
            continue
        plane = tiling.assembled(height, width)
        tiles = pieces[1:].unflatten(0, (plane.tile_rows, plane.tile_cols))
        whole = tiles.permute(2, 0, 3, 1, 4).flatten(1, 2).flatten(2, 3)
        whole = whole[:, plane.top : plane.top + plane.height, plane.left : plane.left + plane.width]
        if (plane.rows, plane.cols) != (plane.height, plane.width):
            whole = resized(whole, plane.rows, plane.cols)
        found.append(torch.nn.functional.pad(whole, (0, 1)).flatten(1))
    arranged = torch.cat(found, dim=1)
    if start != len(maps) or arranged.shape[1] != sum(encoding.lengths):
        raise _drifted("the images of a prompt", arranged.shape[1], sum(encoding.lengths))
    return arranged


def pixels(tiling: AnyResolution, encoding: Encoding, item: int) -> Tensor:
    """[pieces, 3, S, S]: one image's pieces, without those that only pad a batch."""
    given = encoding.argument("pixel_values")
    together = together_of(encoding)
    numbers = [tiling.pieces(*size, together[index]) for index, size in enumerate(sizes_of(encoding))]
    if given.dim() == 5:
        return given[item, : numbers[item]]
    start = sum(numbers[:item])
    return given[start : start + numbers[item]]


def squares(piece: Tensor, side: int) -> Tensor:
    """[pieces, H, side, side]: attention received by the patches of each piece, without [CLS]."""
    return piece[..., piece.shape[-1] - side * side :].unflatten(-1, (side, side))


def resized(maps: Tensor, rows: int, cols: int) -> Tensor:
    """[..., rows, cols]: maps resized as these families resize features."""
    flat = maps.flatten(0, -3).unsqueeze(1).float()
    return torch.nn.functional.interpolate(flat, (rows, cols), mode="bilinear")[:, 0].unflatten(0, maps.shape[:-2])


def checked(what: str, found: Places, encoding: Encoding, item: int) -> Places:
    """``found``, if it has as many places as the model made features of ``what``.

    Raises:
        AdapterError: when it has not.
    """
    if len(found.row) != encoding.lengths[item]:
        raise _drifted(what, len(found.row), encoding.lengths[item])
    return found


def _drifted(what: str, expected: int, got: int) -> AdapterError:
    return AdapterError(
        complaint(what, f"become {expected} placeholders by the model's config", got,
                  "the family has drifted from what this adapter knows; please report the version")
    )  # fmt: skip
