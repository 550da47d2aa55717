"""Model shapes by name or folder: everything that a plan needs, without weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokentrim.errors import DataError, complaint, unknown_name
from tokentrim.loading import read_config, require_supported, resolve_folder
from tokentrim.plugins import registry
from tokentrim.published import PRESETS as PRESETS
from tokentrim.shape import ModelShape

if TYPE_CHECKING:
    from tokentrim.adapter import Adapter


def shape_of(model: str | Path) -> ModelShape:
    """The shape of a model, looked up in this order: preset, registered model, folder with a ``config.json``.

    A folder's shape comes from its config alone, by its adapter's arithmetic; weights need not be there. What happens
    to an image's size comes from its ``preprocessor_config.json`` where that says more than the config.

    Args:
        model: a name, or a folder.

    Raises:
        UnknownNameError: when it is none of these; suggests the nearest name.
        DataError: when the folder holds no readable ``config.json``.
        UnsupportedError: when no adapter serves the folder's model family.
    """
    name = str(model)
    if name in PRESETS:
        return PRESETS[name]
    models = registry("model")
    if name not in models and not Path(model).exists():
        raise unknown_name("model", name, [*PRESETS, *models.names()])
    folder = resolve_folder(model)
    model_type: str = read_config(folder)["model_type"]
    adapter: Adapter = registry("adapter").get(require_supported(model_type, f"model {name!r}"))()
    from transformers import AutoConfig  # after the checks above, because it takes seconds to import

    label = name if name in models else folder.resolve().name
    shape = adapter.shape(AutoConfig.from_pretrained(folder, local_files_only=True), name=label)
    return adapter.preprocessed(shape, _preprocessor(folder))


def _preprocessor(folder: Path) -> dict[str, Any]:
    """Settings of a folder's image processor; empty where it has none.

    Raises:
        DataError: when they are not readable JSON.
    """
    for name in ("preprocessor_config.json", "processor_config.json"):
        path = folder / name
        if not path.is_file():
            continue
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as cause:
            raise DataError(complaint(f"the model's {path}", "be readable JSON", hint=str(cause))) from cause
        found: Any = data.get("image_processor", data) if isinstance(data, dict) else {}
        return found if isinstance(found, dict) else {}
    return {}
