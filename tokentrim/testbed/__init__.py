"""A benchmark that anyone can run: rendered scenes, plain and busy, tasks, and small models trained for them.

Importing this package costs nothing; the renderer needs NumPy, and only ``training/`` needs torch.
"""

from pathlib import Path
from typing import Final

BUSY: Final = "testbed-busy"
_FOLDERS: Final = Path(__file__).parent / "models"
_ALL: Final = ("testbed", "testbed-plain", "testbed-qwen2.5-vl", "testbed-llava-next", BUSY)
MODELS: Final = tuple(name for name in _ALL if (_FOLDERS / name).is_dir())
"""Those that are here: `testbed-plain`, a control, comes with a checkout of the source alone."""


def whole_question(model: str) -> str | None:
    """The question about a whole picture in the small language of a shipped model; None for any other model."""
    if model not in MODELS:
        return None
    return "describe ?" if model == BUSY else "list all ?"


def model_folder(name: str = "testbed") -> Path:
    """Folder of a shipped model, for `from_pretrained`.

    `testbed`: 12 layers, trained with visual-token dropout. `testbed-plain`: 6 layers, which never saw a
    picture with missing tokens; not in a wheel. `testbed-qwen2.5-vl`, `testbed-llava-next`: 14 layers, other
    architectures, as many visual tokens as a picture's size asks for. `testbed-busy`: 12 layers, for the busy pictures.
    """
    if name not in MODELS:
        raise ValueError(f"shipped model must be one of {', '.join(MODELS)}; got {name!r}")
    return _FOLDERS / name
