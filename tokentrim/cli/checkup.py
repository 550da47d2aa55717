"""Does pruning work on a model? Answered by the self-test, on a small random copy of its configuration.

Its processor is loaded as it is: what that misses would be noticed only when there is a picture.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from tokentrim.errors import TokentrimError
from tokentrim.loading import describe, load_processor, quantised_by, require_reader
from tokentrim.progress import Progress
from tokentrim.selftest import Result, model_class_of, self_test, trusted

PROCESSOR: Final = "processor"
"""The check without which a model is served to those alone who bring inputs of their own."""
WEIGHTS: Final = "weights"
"""The check without which a quantised model cannot be loaded."""
_FILES: Final = ("processor_config.json", "preprocessor_config.json", "tokenizer_config.json", "tokenizer.json")


def check_model(name: str, progress: Progress | None = None) -> dict[str, Any]:
    """The self-test of a registered model, a folder or a model of the hub, which needs no weights.

    Args:
        name: which one.
        progress: told what happens.

    Returns:
        ``model``, ``adapter``, ``served`` (whether ``trim`` accepts it) and ``checks``: objects with ``name``, ``ok``
        (None where a check could not be made), ``result``, and ``takes``, the needs that the model does without where
        the check failed; a failed check that takes none refuses the model.

    Raises:
        TokentrimError: when there is no such model, or no adapter serves its family.
    """
    folder, config, adapter, _ = describe(name)
    test = self_test(model_class_of(config), config, adapter, progress=progress)
    family = Result("family", True, f"{config.model_type}, served by adapter {adapter.name}")
    refusal = test.refusal
    return {
        "model": name,
        "adapter": adapter.name,
        "served": refusal is None or (refusal.ok is None and trusted(adapter, [config.get_text_config()])),
        "checks": [_row(result) for result in (family, _processor(folder), *_weights(folder, config), *test.results)],
    }


def _processor(folder: Path) -> Result:
    """Whether a folder's processor loads, where there is one."""
    if not any((folder / file).is_file() for file in _FILES):
        return Result(PROCESSOR, None, "the folder holds no files of one")
    try:
        return Result(PROCESSOR, True, type(load_processor(folder)).__name__)
    except TokentrimError as error:
        return Result(PROCESSOR, False, str(error))


def _weights(folder: Path, config: Any) -> list[Result]:
    """Whether quantised weights can be read here; nothing of plain ones, which need no library."""
    method = quantised_by(config)
    if method is None:
        return []
    try:
        require_reader(config, folder)
    except TokentrimError as error:
        return [Result(WEIGHTS, False, str(error))]
    return [Result(WEIGHTS, True, f"quantised: {method}")]


def _row(result: Result) -> dict[str, Any]:
    takes = sorted(need.value for need in result.takes)
    return {"name": result.name, "ok": result.ok, "result": result.text, "takes": [] if result.ok else takes}
