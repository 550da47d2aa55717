"""Placing things on a figure in inches."""

from __future__ import annotations

from textwrap import shorten
from typing import Any, NamedTuple

from PIL import Image


class Rect(NamedTuple):
    """A rectangle in inches, from the figure's lower left corner."""

    left: float
    bottom: float
    width: float
    height: float


def axis_at(figure: Any, rect: Rect) -> Any:
    """An axis there."""
    width, height = figure.get_size_inches()
    return figure.add_axes((rect.left / width, rect.bottom / height, rect.width / width, rect.height / height))


def write(figure: Any, left: float, top: float, text: str, **style: Any) -> None:
    """Text at ``left`` inches, ``top`` inches below the figure's upper edge."""
    width, height = figure.get_size_inches()
    figure.text(left / width, 1 - top / height, text, **{"va": "center", **style})


def width_of(text: str, size: float, *, bold: bool = False) -> float:
    """How wide a line of text is drawn, in inches, at ``size`` points."""
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import text_to_path

    font = FontProperties(family="DejaVu Sans", weight="bold" if bold else "normal", size=size)
    width: float = text_to_path.get_text_width_height_descent(text, font, ismath=False)[0] if text.strip() else 0.0
    return width / 72


def fitted(text: str, width: float, size: float, *, bold: bool = False) -> str:
    """As much of a line as is at most ``width`` inches wide, with an ellipsis where it is cut."""
    text = " ".join(text.split())
    if width_of(text, size, bold=bold) <= width:
        return text
    low, high = 0, len(text)
    while low < high:
        middle = (low + high + 1) // 2
        if width_of(f"{text[:middle].rstrip()} …", size, bold=bold) <= width:
            low = middle
        else:
            high = middle - 1
    return f"{text[:low].rstrip()} …"


def cut(text: str, letters: int) -> str:
    """At most so many letters of a text: cut between words, or inside one that leaves no room for others."""
    text = " ".join(text.split())
    if len(text) <= letters:
        return text
    words = shorten(text, letters, placeholder=" …")
    return words if 2 * len(words) > letters else f"{text[: letters - 1]}…"


def framed(axis: Any, color: str, linewidth: float) -> None:
    """Leave an axis nothing but a frame."""
    axis.set(xticks=[], yticks=[])
    axis.grid(visible=False)
    for spine in axis.spines.values():
        spine.set(visible=True, color=color, linewidth=linewidth)


def size_of(image: Image.Image, side: float) -> tuple[float, float]:
    """(width, height) of a picture whose longer side is ``side``."""
    longer = max(image.size)
    return side * image.width / longer, side * image.height / longer
