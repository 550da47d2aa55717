"""Fading the patches of an image that are gone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

_FADE: Final = 0.86  # how far a dropped patch goes towards
_GONE: Final = 205.0  # a light grey, so that those of white pages are told apart as well
_PIXELS: Final = 240


def shade(image: Image.Image, kept: Sequence[int], rows: int, cols: int, size: int = _PIXELS) -> NDArray[np.uint8]:
    """The image, its longer side about ``size`` pixels, dropped patches faded, as an array [H, W, 3]."""
    longer = max(image.size)
    width, height = (
        max(cells, size * pixels // longer // cells * cells)
        for pixels, cells in zip(image.size, (cols, rows), strict=True)
    )
    resample = Image.Resampling.NEAREST if image.width < width else Image.Resampling.LANCZOS
    pixels = np.asarray(image.convert("RGB").resize((width, height), resample), dtype=np.float64)
    there = np.zeros(rows * cols)
    there[[token for token in kept if 0 <= token < rows * cols]] = 1.0
    mask = there.reshape(rows, cols).repeat(height // rows, axis=0).repeat(width // cols, axis=1)[..., None]
    grey = pixels.mean(axis=2, keepdims=True)
    faded = grey * (1 - _FADE) + _GONE * _FADE
    return (pixels * mask + faded * (1 - mask)).astype(np.uint8)
