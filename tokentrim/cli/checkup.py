"""Does pruning work on a model? Answered by the self-test, on a small random copy of its configuration."""

from __future__ import annotations

from typing import Any

from tokentrim.contracts.adapter import Adapter
from tokentrim.errors import DataError, complaint
from tokentrim.loading import read_config, require_supported, resolve_folder
from tokentrim.plugins.loader import registry
from tokentrim.selftest import Result, model_class_of, self_test


def check_model(name: str) -> dict[str, Any]:
    """The self-test of a registered model or a folder, which needs no weights.

    Returns:
        ``model``, ``adapter``, ``served`` (whether ``trim`` accepts it) and ``checks``: objects with ``name``, ``ok``
        (None where a check could not be made), ``result``, and ``takes``, the needs that the model does without where
        the check failed; a failed check that takes none refuses the model.

    Raises:
        TokentrimError: when there is no such model, or no adapter serves its family.
    """
    folder = resolve_folder(name)
    model_type = read_config(folder)["model_type"]
    served_by = require_supported(model_type, f"model {name!r}")
    adapter: Adapter = registry("adapter").get(served_by)()
    from transformers import AutoConfig  # after the checks above, because it takes seconds to import

    try:
        config: Any = AutoConfig.from_pretrained(folder, local_files_only=True)
    except Exception as cause:  # transformers raises whatever the broken file led to
        raise DataError(
            complaint(f"the configuration in {folder}", "load", hint=f"{type(cause).__name__}: {cause}")
        ) from cause
    test = self_test(model_class_of(config), config, adapter)
    family = Result("family", True, f"{model_type}, served by adapter {served_by}")
    refusal = test.refusal
    return {
        "model": name,
        "adapter": served_by,
        "served": refusal is None or (refusal.ok is None and not adapter.needs_proof),
        "checks": [_row(result) for result in (family, *test.results)],
    }


def _row(result: Result) -> dict[str, Any]:
    takes = sorted(need.value for need in result.takes)
    return {"name": result.name, "ok": result.ok, "result": result.text, "takes": [] if result.ok else takes}
