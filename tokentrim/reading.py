"""Files of strangers: opened only where that ends, pictures as they are meant, and frames of videos."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from tokentrim.errors import WHOLE, DataError, UnsupportedError, complaint, reason_of

if TYPE_CHECKING:
    from PIL import Image

_GREY_OF_16_BITS: Final = ("PNG", "PPM")
"""Formats whose grey values Pillow may hand out as integers of 32 bits, though white is 65535."""
_PICTURES: Final = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
_MOVING: Final = (".gif", ".webp", ".apng", ".png")
_DECODERS: Final = (("av", "pyav"), ("torchcodec", "torchcodec"), ("cv2", "opencv"), ("decord", "decord"))
"""Libraries, and what transformers calls them; the first that is installed decodes."""


@dataclass(frozen=True)
class Video:
    """Frames of a video.

    Attributes:
        frames: RGB, in their order, at equal distances.
        fps: how many of these frames make up a second; None: nobody knows, and a model is told what its processor takes
            for usual.
        name: what people call it, such as its file's name.
        seconds: when each frame is shown, where that is known better than from ``fps``.
    """

    frames: tuple[Image.Image, ...]
    fps: float | None = None
    name: str = ""
    seconds: tuple[float, ...] = ()

    def called(self, first: int, last: int, which: str = "video") -> str:
        """Name some of the frames for people: whose they are, their numbers, and the second where it is known.

        Args:
            first: number of the first one, from 0.
            last: number of the last one.
            which: the video, where it has no name.
        """
        numbers = f"frame {first + 1}" if first == last else f"frames {first + 1}-{last + 1}"
        seconds = self.seconds or tuple(place / self.fps for place in range(len(self.frames)) if self.fps)
        second = f", at {seconds[first]:.1f} s" if seconds else ""
        return f"{self.name or which}, {numbers} of {len(self.frames)}{second}"


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


def load_video(path: str | Path, frames: int) -> Video:
    """Frames of a video at equal distances, from its first on; all of them where it has fewer.

    Args:
        path: a file, or a folder whose pictures are frames in the order of their names.
        frames: how many at most.

    Raises:
        DataError: when it is missing, or cannot be decoded.
        UnsupportedError: when no library that decodes it is installed.
    """
    path = Path(path)
    try:
        if path.is_dir():
            files = frame_files(path)
            return Video(tuple(load_image(files[place]) for place in _places(len(files), frames)), name=path.name)
        regular(path)
        return _moving(path, frames) if path.suffix.lower() in _MOVING else _decoded(path, frames)
    except FileNotFoundError as cause:
        raise DataError(complaint("the video", "be an existing file or folder", str(path), "check the path")) from cause
    except (DataError, UnsupportedError):
        raise
    except Exception as cause:  # decoders raise whatever the broken file led to
        raise DataError(complaint("the video", "be readable", str(path), reason_of(cause, WHOLE))) from cause


def frame_files(folder: Path) -> list[Path]:
    """The pictures of a folder, which are a video's frames, by their names.

    Raises:
        DataError: when it has none.
    """
    files = sorted(file for file in folder.iterdir() if file.suffix.lower() in _PICTURES)
    if not files:
        raise DataError(complaint(f"the video {folder}", f"hold pictures, {', '.join(_PICTURES)}", "none"))
    return files


def _places(total: int, wanted: int) -> list[int]:
    """Numbers of ``wanted`` frames of ``total``, at equal distances."""
    return list(range(total)) if total <= wanted else [place * total // wanted for place in range(wanted)]


def _moving(path: Path, frames: int) -> Video:
    from PIL import Image

    found: list[Image.Image] = []
    begins: list[float] = []  # seconds
    shown = 0.0
    with Image.open(path) as file:
        total: int = getattr(file, "n_frames", 1)
        places = set(_places(total, frames))
        for place in range(total):  # what lies between is decoded in any case, and each may be shown for its own time
            file.seek(place)
            file.load()  # a WebP knows only then how long
            if place in places:
                begins.append(shown)
                found.append(file.convert("RGB"))
            shown += file.info.get("duration", 0) / 1000
    if not shown:
        return Video(tuple(found), name=path.name)
    return Video(tuple(found), len(found) / shown, path.name, tuple(begins))


def _decoded(path: Path, frames: int) -> Video:
    backend = next((name for library, name in _DECODERS if find_spec(library) is not None), None)
    if backend is None:
        raise UnsupportedError(
            complaint(f"the video {path}", "meet a library that decodes it", "none of PyAV, torchcodec, OpenCV, decord",
                      "run pip install 'tokentrim-vlm[video]', or pass a folder of frames or a GIF")
        )  # fmt: skip
    from PIL import Image
    from transformers import video_utils

    asked: list[int] = []

    def places(metadata: Any, **_: Any) -> Any:
        import numpy as np

        asked[:] = _places(int(metadata.total_num_frames), frames)
        return np.asarray(asked)

    decode: Any = video_utils.load_video
    decoded, about = decode(str(path), backend=backend, sample_indices_fn=places)
    taken = tuple(Image.fromarray(frame) for frame in decoded)
    if not about.fps:
        return Video(taken, name=path.name)
    seconds = tuple(place / about.fps for place in asked) if len(taken) == len(asked) else ()
    return Video(taken, len(taken) / about.total_num_frames * about.fps, path.name, seconds)
