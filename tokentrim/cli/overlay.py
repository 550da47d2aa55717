"""The picture of ``tokentrim run --overlay``: kept patches over the image, one tile per stage."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from PIL import Image, ImageDraw, ImageFont

from tokentrim.drawing.shade import shade
from tokentrim.errors import ResultsError, complaint

if TYPE_CHECKING:
    from tokentrim.contracts.token_places import Cells

_TILE: Final = 288
_GAP: Final = 16
_CAPTION: Final = 44
_FOOT: Final = 24
_NAME: Final = 18
_CAPTION_WIDTH: Final = 200
_INK: Final = "#1f2430"
_FAINT: Final = "#6b7280"
_EDGE: Final = "#c3c7cf"


def write_overlay(
    path: Path,
    images: Sequence[Image.Image],
    stages: Sequence[tuple[int | None, Sequence[int]]],
    cells: Cells,
    *,
    names: Sequence[str] = (),
    note: str = "",
) -> None:
    """Write the picture: a row per image (two where an image is a thumbnail and tiles), a tile per stage.

    Args:
        path: file to write.
        images: the prompt's images, in order.
        stages: (first layer, kept visual tokens), layer None for what the last layer sees at the end.
        cells: where the visual tokens lie.
        names: what each image is called; nothing, where that is plain.
        note: a few words below.

    Raises:
        ResultsError: when the file cannot be written.
    """
    tiles = [
        [shade(images[plane.image], cells.inside(number, kept), plane.rows, plane.cols, _TILE) for _, kept in stages]
        for number, plane in enumerate(cells.planes)
    ]
    named = [names[plane.image] if names else "" for plane in cells.planes]
    heads = [_NAME if name else 0 for name in named]
    width = max(_CAPTION_WIDTH, *(line[0].shape[1] for line in tiles))
    height = _CAPTION + sum(head + line[0].shape[0] + _GAP for head, line in zip(heads, tiles, strict=True))
    size = (_GAP + len(stages) * (width + _GAP), height + (_FOOT if note else 0))
    canvas = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(canvas)
    for place, (layer, kept) in enumerate(stages):
        left = _GAP + place * (width + _GAP)
        title = "last layer, at the end" if layer is None else f"from layer {layer}"
        draw.text((left, 14), title, fill=_INK, font=ImageFont.load_default(17))
        text = f"{len(kept)} kept"
        font = ImageFont.load_default(15)
        draw.text((left + width - draw.textlength(text, font=font), 16), text, fill=_FAINT, font=font)
        top = _CAPTION
        for head, name, line in zip(heads, named, tiles, strict=True):
            if place == 0:
                draw.text((left, top), name, fill=_FAINT, font=ImageFont.load_default(12))
            top += head
            canvas.paste(Image.fromarray(line[place]), (left, top))
            edge = (left - 1, top - 1, left + line[place].shape[1], top + line[place].shape[0])
            draw.rectangle(edge, outline=_EDGE)  # a white page on white would have no end
            top += line[place].shape[0] + _GAP
    draw.text((_GAP, height), note, fill=_FAINT, font=ImageFont.load_default(12))
    try:
        canvas.save(path)
    except OSError as cause:
        raise ResultsError(complaint(f"{path}", "be writable", hint=str(cause))) from cause
