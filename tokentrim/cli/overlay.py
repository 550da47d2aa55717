"""The picture of ``tokentrim run --overlay``: kept patches over the image, one tile per stage."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from PIL import Image, ImageDraw, ImageFont

from tokentrim.compare.shade import shade
from tokentrim.errors import ResultsError, UnsupportedError, complaint

if TYPE_CHECKING:
    from tokentrim.shape import ModelShape

_TILE: Final = 288
_GAP: Final = 16
_CAPTION: Final = 44
_INK: Final = "#1f2430"
_FAINT: Final = "#6b7280"


def write_overlay(
    path: Path,
    images: Sequence[Image.Image],
    stages: Sequence[tuple[int | None, Sequence[int]]],
    shape: ModelShape,
) -> None:
    """Write the picture: a row per image, a tile per stage.

    Args:
        path: file to write.
        images: the prompt's images, in order.
        stages: (first layer, kept visual tokens), layer None for the cache at the end.
        shape: of the model.

    Raises:
        UnsupportedError: when the model's images are not one grid of fixed size each.
        ResultsError: when the file cannot be written.
    """
    vision = shape.vision
    if vision is None or vision.rows * vision.cols != vision.n_visual:
        raise UnsupportedError(
            complaint("--overlay", "be used with a model whose images are one grid each", shape.name, "leave it out")
        )
    tiles = [
        [shade(image, _of_image(kept, number, vision.n_visual), vision.rows, vision.cols, _TILE) for _, kept in stages]
        for number, image in enumerate(images)
    ]
    width, height = tiles[0][0].shape[1], tiles[0][0].shape[0]
    size = (_GAP + len(stages) * (width + _GAP), _CAPTION + len(images) * (height + _GAP))
    canvas = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(canvas)
    for place, (layer, kept) in enumerate(stages):
        left = _GAP + place * (width + _GAP)
        title = "cache at the end" if layer is None else f"from layer {layer}"
        draw.text((left, 14), title, fill=_INK, font=ImageFont.load_default(17))
        text = f"{len(kept)} kept"
        font = ImageFont.load_default(15)
        draw.text((left + width - draw.textlength(text, font=font), 16), text, fill=_FAINT, font=font)
        for row, line in enumerate(tiles):
            canvas.paste(Image.fromarray(line[place]), (left, _CAPTION + row * (height + _GAP)))
    try:
        canvas.save(path)
    except OSError as cause:
        raise ResultsError(complaint(f"{path}", "be writable", hint=str(cause))) from cause


def _of_image(kept: Sequence[int], number: int, n_visual: int) -> list[int]:
    """The tokens of one image, numbered from its own first."""
    return [token - number * n_visual for token in kept if number * n_visual <= token < (number + 1) * n_visual]
