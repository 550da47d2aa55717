"""HTML for notebooks: tables, and pictures that fold.

Inline styles and data alone, without scripts, style sheets or input fields: what a notebook may show that nobody
trusts. Words have the colours of the page, and what is gone of a picture is grey, so that light and dark pages show
both.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING, Final

from tokentrim.drawing.style import FAINT

if TYPE_CHECKING:
    from PIL import Image

_PIXELS: Final = 240
_GONE: Final = 0.82  # how far a dropped patch goes towards grey
_QUALITY: Final = 85
_FILL: Final = (0x3F, 0x7F, 0xCF)  # of kept tokens without a picture; stands out from white and from black
_CELL: Final = f"padding:2px 10px;border-bottom:1px solid {FAINT}55"


def table(header: Sequence[str], rows: Sequence[Sequence[str]], title: str = "") -> str:
    """A table; first columns are words and others, where there is a header, numbers."""
    numbers = "right" if header else "left"

    def line(tag: str, cells: Sequence[str]) -> str:
        sides = ("left" if place == 0 else numbers for place in range(len(cells)))
        pairs = zip(sides, cells, strict=True)
        return "".join(f'<{tag} style="text-align:{side};{_CELL}">{escape(cell)}</{tag}>' for side, cell in pairs)

    head = f"<thead><tr>{line('th', header)}</tr></thead>" if header else ""
    body = "".join(f"<tr>{line('td', row)}</tr>" for row in rows)
    return f'{heading(title)}<table style="color:inherit">{head}<tbody>{body}</tbody></table>'


def heading(title: str) -> str:
    """A line above what follows; nothing without words."""
    return f"<div><strong>{escape(title)}</strong></div>" if title else ""


def notes(lines: Sequence[str]) -> str:
    """Lines below what came before."""
    return "".join(f'<div style="opacity:0.75">{escape(line)}</div>' for line in lines)


def folded(stages: Sequence[tuple[str, Sequence[str]]], group: str) -> str:
    """One fold per stage, the last one open; where the browser knows the name of a group, opening one closes another.

    Args:
        stages: what each is called, and its pictures as :func:`kept_patches` makes them.
        group: a name that no other folds of the page have.
    """
    found: list[str] = []
    for place, (title, pictures) in enumerate(stages):
        opened = " open" if place == len(stages) - 1 else ""
        shown = "".join(
            f'<img alt="{escape(title)}" src="{picture}" style="margin:4px 8px 4px 0;border:1px solid {FAINT}55">'
            for picture in pictures
        )
        found.append(f'<details name="{escape(group)}"{opened}><summary>{escape(title)}</summary>{shown}</details>')
    return "".join(found)


def kept_patches(image: Image.Image | None, kept: Sequence[int], rows: int, cols: int) -> str:
    """A data URI of a picture, its dropped patches nearly grey; of plain squares, where there is no picture.

    Args:
        image: covered by the patches.
        kept: raster numbers of the patches that stayed.
        rows: of the patches.
        cols: of the patches.
    """
    import numpy as np
    from PIL import Image

    scale = _PIXELS / max(image.size if image is not None else (cols, rows))
    size = (cols, rows) if image is None else image.size
    width, height = (
        max(cells, round(scale * pixels / cells) * cells) for pixels, cells in zip(size, (cols, rows), strict=True)
    )
    plain = Image.new("RGB", (width, height), _FILL)
    shown = plain if image is None else _enlarged(image, (width, height))
    there = np.zeros(rows * cols, dtype=np.uint8)
    there[list(kept)] = 255
    mask = Image.fromarray(there.reshape(rows, cols)).resize((width, height), Image.Resampling.NEAREST)
    grey = Image.new("RGB", (width, height), (128, 128, 128))
    shown = Image.composite(shown, Image.blend(shown, grey, _GONE), mask)
    file = io.BytesIO()
    shown.save(file, "WEBP", quality=_QUALITY)  # a tenth of a PNG
    return "data:image/webp;base64," + base64.b64encode(file.getvalue()).decode("ascii")


def _enlarged(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """A picture of that size, its own pixels left to be seen where it is smaller."""
    from PIL import Image as Pillow

    way = Pillow.Resampling.NEAREST if image.width < size[0] else Pillow.Resampling.LANCZOS
    return image.convert("RGB").resize(size, way)
