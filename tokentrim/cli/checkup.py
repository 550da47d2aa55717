"""Does pruning work on a model? Answered by the self-test, on a small random copy of its configuration."""

from __future__ import annotations

from typing import Any

from tokentrim.loading import describe
from tokentrim.selftest import Result, model_class_of, self_test, trusted


def check_model(name: str) -> dict[str, Any]:
    """The self-test of a registered model or a folder, which needs no weights.

    Returns:
        ``model``, ``adapter``, ``served`` (whether ``trim`` accepts it) and ``checks``: objects with ``name``, ``ok``
        (None where a check could not be made), ``result``, and ``takes``, the needs that the model does without where
        the check failed; a failed check that takes none refuses the model.

    Raises:
        TokentrimError: when there is no such model, or no adapter serves its family.
    """
    _, config, adapter, _ = describe(name)
    test = self_test(model_class_of(config), config, adapter)
    family = Result("family", True, f"{config.model_type}, served by adapter {adapter.name}")
    refusal = test.refusal
    return {
        "model": name,
        "adapter": adapter.name,
        "served": refusal is None or (refusal.ok is None and trusted(adapter, [config.get_text_config()])),
        "checks": [_row(result) for result in (family, *test.results)],
    }


def _row(result: Result) -> dict[str, Any]:
    takes = sorted(need.value for need in result.takes)
    return {"name": result.name, "ok": result.ok, "result": result.text, "takes": [] if result.ok else takes}
