"""What the self-test says of every family that transformers ships as image-text-to-text: a table for the docs.

``python tests/family_table.py [model_type ...]`` prints all checks of the named families.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import transformers
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

from tokentrim.errors import TokentrimError
from tokentrim.loading import known_model_types
from tokentrim.plugins import registry
from tokentrim.selftest import SelfTest, model_class_of, self_test

# Where a configuration class's defaults do not make a model that runs: what the published checkpoints have.
_GLM_ROPE = {
    "rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5, "mrope_section": [8, 12, 12]
}  # fmt: skip
_PUBLISHED: dict[str, dict[str, Any]] = {
    name: {"text_config": {"rope_parameters": _GLM_ROPE, "head_dim": 128}}
    for name in ("glm4v", "glm46v", "glm4v_moe", "glmga")
}


def model_types() -> list[str]:
    """All that transformers knows."""
    return sorted(MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES)


def tested(model_type: str) -> SelfTest | str:
    """The self-test of a family's default configuration, or why there is none."""
    try:
        config = CONFIG_MAPPING[model_type](**_PUBLISHED.get(model_type, {}))
        adapter = registry("adapter").get(known_model_types().get(model_type, "generic"))()
        return self_test(model_class_of(config), config, adapter)
    except TokentrimError as error:
        return str(error)
    except Exception as error:
        return f"its default configuration makes no model: {type(error).__name__}: {error}"


def row(model_type: str) -> str:
    """One line of the table."""
    test = tested(model_type)
    adapter = known_model_types().get(model_type, "generic")
    if isinstance(test, str):
        return _line(model_type, adapter, "refused", test)
    refusal = test.refusal
    if refusal is not None:
        return _line(model_type, adapter, "refused", refusal.text if refusal.name in ("layout", "small copy")
                     else f"{refusal.name}: {refusal.text}")  # fmt: skip
    without = [f"{result.name}: {result.text}" for result in test.results if result.ok is False]
    windowed = [result.text for result in test.results if result.name == "windows" and "refused" in result.text]
    return _line(model_type, adapter, "works", "; ".join([*without, *windowed]))


def _line(model_type: str, adapter: str, verdict: str, remark: str) -> str:
    clean = " ".join(remark.split()).replace("|", "\\|").replace("<", "\\<")
    return f"| `{model_type}` | {adapter} | {verdict} | {clean} |"


def table() -> str:
    """Markdown: a line with the version, then one row per family."""
    lines = [row(model_type) for model_type in model_types()]
    works = sum("| works |" in line for line in lines)
    head = f"Of transformers {transformers.__version__}, {works} of {len(lines)} families work:"
    return "\n".join([head, "", "| `model_type` | adapter | verdict | remark |", "| --- | --- | --- | --- |", *lines])


if __name__ == "__main__":
    sys.path[:0] = [str(Path(__file__).parent.parent / name) for name in ("", "strategies", "adapters")]
    for name in sys.argv[1:]:
        test = tested(name)
        found = test if isinstance(test, str) else {r.name: [r.ok, r.text] for r in test.results}
        print(name, json.dumps(found, indent=1))
