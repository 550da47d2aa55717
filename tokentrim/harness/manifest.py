"""What lmms-eval's entry point group ``lmms_eval.models`` names: the model ``tokentrim``."""

from __future__ import annotations

import importlib
from typing import Any


def manifests() -> Any:
    """Lmms-eval's description of the model; imports neither torch nor the model class."""
    registry: Any = importlib.import_module("lmms_eval.models.registry_v2")
    return registry.ModelManifest(model_id="tokentrim", chat_class_path="tokentrim.harness.lmms.Tokentrim")
