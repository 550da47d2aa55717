"""Placing things on a figure in inches."""

from __future__ import annotations

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
