"""Frames of videos: a folder of pictures, a moving picture that Pillow reads, or what an installed decoder reads."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from tokentrim.errors import WHOLE, DataError, UnsupportedError, complaint, reason_of
from tokentrim.reading import load_image, regular

if TYPE_CHECKING:
    from PIL import Image

_PICTURES: Final = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
_MOVING: Final = (".gif", ".webp", ".apng", ".png")
_DECODERS: Final = (("av", "pyav"), ("torchcodec", "torchcodec"), ("cv2", "opencv"), ("decord", "decord"))
"""Libraries, and what transformers calls them; the first that is installed decodes."""


def load_video(path: str | Path, frames: int) -> list[Image.Image]:
    """Frames of a video at equal distances, from its first on; all of them where it has fewer.

    Args:
        path: a file, or a folder whose pictures are frames in the order of their names.
        frames: how many at most.

    Raises:
        DataError: when it is missing, or cannot be decoded.
        UnsupportedError: when no library that decodes it is installed.
    """
    path = Path(path)
    if path.is_dir():
        files = sorted(file for file in path.iterdir() if file.suffix.lower() in _PICTURES)
        if not files:
            raise DataError(complaint(f"the video {path}", f"hold pictures, {', '.join(_PICTURES)}", "none"))
        return [load_image(files[place]) for place in _places(len(files), frames)]
    try:
        regular(path)
        return _moving(path, frames) if path.suffix.lower() in _MOVING else _decoded(path, frames)
    except FileNotFoundError as cause:
        raise DataError(complaint("the video", "be an existing file or folder", str(path), "check the path")) from cause
    except UnsupportedError:
        raise
    except Exception as cause:  # decoders raise whatever the broken file led to
        raise DataError(complaint("the video", "be readable", str(path), reason_of(cause, WHOLE))) from cause


def _places(total: int, wanted: int) -> list[int]:
    """Numbers of ``wanted`` frames of ``total``, at equal distances."""
    return list(range(total)) if total <= wanted else [place * total // wanted for place in range(wanted)]


def _moving(path: Path, frames: int) -> list[Image.Image]:
    from PIL import Image

    found: list[Image.Image] = []
    with Image.open(path) as file:
        for place in _places(getattr(file, "n_frames", 1), frames):
            file.seek(place)
            found.append(file.convert("RGB"))
    return found


def _decoded(path: Path, frames: int) -> list[Image.Image]:
    backend = next((name for library, name in _DECODERS if find_spec(library) is not None), None)
    if backend is None:
        raise UnsupportedError(
            complaint(f"the video {path}", "meet a library that decodes it", "none of PyAV, torchcodec, OpenCV, decord",
                      "run pip install 'tokentrim[video]', or pass a folder of frames or a GIF")
        )  # fmt: skip
    from PIL import Image
    from transformers import video_utils

    def places(metadata: Any, **_: Any) -> Any:
        import numpy as np

        return np.asarray(_places(int(metadata.total_num_frames), frames))

    decode: Any = video_utils.load_video
    video, _ = decode(str(path), backend=backend, sample_indices_fn=places)
    return [Image.fromarray(frame) for frame in video]
