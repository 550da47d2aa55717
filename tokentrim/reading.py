"""Files of strangers: opened only where that ends, and pictures as they are meant."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Final

from tokentrim.errors import DataError, complaint, reason_of

if TYPE_CHECKING:
    from PIL import Image

_GREY_OF_16_BITS: Final = ("PNG", "PPM")
"""Formats whose grey values Pillow may hand out as integers of 32 bits, though white is 65535."""


def regular(path: str | Path, at_most: int | None = None) -> Path:
    """The path of a regular file: a pipe may never say anything, and a device never stops.

    Args:
        path: of the file.
        at_most: bytes that it may have; None = as many as it likes.

    Raises:
        OSError: when it is missing, is no regular file, or is larger; also for a text that can be no path.
    """
    try:
        status = os.stat(path)
    except ValueError as cause:  # a NUL in it
        raise OSError(f"{cause} in the path {str(path)!r}") from cause
    if not stat.S_ISREG(status.st_mode):
        raise OSError(f"{str(path)!r} is a folder, a pipe or a device, not a regular file")
    if at_most is not None and status.st_size > at_most:
        raise OSError(f"{str(path)!r} has {status.st_size} bytes, and at most {at_most} are read")
    return Path(path)


def utf8(path: str | Path, at_most: int) -> str:
    """The text of a regular file.

    Raises:
        OSError: see :func:`regular`.
        UnicodeDecodeError: when it is not UTF-8.
    """
    return regular(path, at_most).read_text(encoding="utf-8")


def load_image(path: str | Path) -> Image.Image:
    """An image file as RGB, as viewers show it: see :func:`as_shown`.

    Raises:
        DataError: when it is missing or cannot be decoded.
    """
    from PIL import Image

    try:
        with Image.open(regular(path)) as file:
            return as_shown(file)
    except FileNotFoundError as cause:
        raise DataError(complaint("the image", "be an existing file", str(path), "check the path")) from cause
    except Exception as cause:  # Pillow's readers raise whatever the broken file led to
        raise DataError(
            complaint("the image", "be readable", str(path), f"{reason_of(cause)}; re-save it as PNG or JPEG")
        ) from cause


def as_shown(image: Image.Image) -> Image.Image:
    """An image as RGB of 8 bits, turned as its EXIF tag says.

    Raises:
        DataError: for grey values whose white is unknown (integers of 32 bits, floating-point numbers).
    """
    from PIL import Image, ImageOps

    if image.mode == "F" or (image.mode == "I" and image.format not in _GREY_OF_16_BITS):
        raise DataError(
            complaint("an image's grey values", "have 8 or 16 bits", f"mode {image.mode}", "scale them to 0..255")
        )
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):  # convert would cut off all that is above 255
        import numpy as np

        image = Image.fromarray((np.asarray(image).astype(np.float64) * (255 / 65535)).round().astype(np.uint8))
    return image.convert("RGB")
