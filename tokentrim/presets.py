"""Model shapes by name or folder: everything that a plan needs, without weights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from tokentrim.errors import unknown_name
from tokentrim.loading import known_model_types, read_config, require_supported, resolve_folder
from tokentrim.plugins import registry
from tokentrim.shape import ModelShape, VisionShape

if TYPE_CHECKING:
    from tokentrim.adapter import Adapter

_CLIP_L_336: Final = VisionShape(
    n_layers=24, hidden_size=1024, intermediate_size=4096, n_tokens=577, n_visual=576, rows=24, cols=24
)

PRESETS: Final[Mapping[str, ModelShape]] = MappingProxyType(
    {
        "llava-1.5-7b": ModelShape(
            n_layers=32,
            hidden_size=4096,
            n_heads=32,
            n_kv_heads=32,
            head_dim=128,
            intermediate_size=11008,
            vocab_size=32064,
            vision=_CLIP_L_336,
            name="llava-1.5-7b",
        ),
        "llava-1.5-13b": ModelShape(
            n_layers=40,
            hidden_size=5120,
            n_heads=40,
            n_kv_heads=40,
            head_dim=128,
            intermediate_size=13824,
            vocab_size=32064,
            vision=_CLIP_L_336,
            name="llava-1.5-13b",
        ),
    }
)
"""Published models that plans can be made for without a folder; caches in 16 bits."""


def shape_of(model: str | Path) -> ModelShape:
    """The shape of a model, looked up in this order: preset, registered model, folder with a ``config.json``.

    A folder's shape comes from its config alone, by its adapter's arithmetic; weights need not be there.

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
    require_supported(model_type, f"model {name!r}")
    adapter: Adapter = registry("adapter").get(known_model_types()[model_type])()
    from transformers import AutoConfig  # after the checks above, because it takes seconds to import

    label = name if name in models else folder.resolve().name
    return adapter.shape(AutoConfig.from_pretrained(folder, local_files_only=True), name=label)
