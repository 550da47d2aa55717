"""What the self-test says of every family that transformers ships as image-text-to-text: a table for the docs.

``python -m tests.family_table`` writes the table into docs/families.md anew (minutes); with model types behind it, it
prints all checks of these instead.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import transformers
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

from tokentrim.errors import TokentrimError
from tokentrim.loading import known_model_types
from tokentrim.plugins.loader import registry
from tokentrim.selftest import SelfTest, model_class_of, self_test

PAGE = Path(__file__).parent.parent / "docs/families.md"
_LONGEST = 170  # characters of a remark
_HINT = " This model needs an adapter of its own, "

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
    without = [
        f"without {' '.join(sorted(need.value for need in result.takes))}: {result.text}"
        for result in test.results
        if result.ok is False
    ]
    windowed = [result.text for result in test.results if result.name == "windows" and "refused" in result.text]
    return _line(model_type, adapter, "works", "; ".join([*without, *windowed]))


def _line(model_type: str, adapter: str, verdict: str, remark: str) -> str:
    clean = " ".join(remark.removesuffix("if it can have one.").removesuffix(_HINT).split())
    clean = clean if len(clean) <= _LONGEST else f"{clean[:_LONGEST].rsplit(' ', 1)[0]} ..."
    clean = clean.replace("|", "\\|").replace("<", "\\<").rstrip(".: ")
    return f"| `{model_type}` | {adapter} | {verdict} | {clean} |"


def table() -> str:
    """Markdown: a line with the version, then one row per family."""
    return framed([row(model_type) for model_type in model_types()])


def framed(lines: list[str]) -> str:
    """Rows under their heading."""
    works = sum("| works |" in line for line in lines)
    head = f"Of transformers {transformers.__version__}, {works} of {len(lines)} families work:"
    return "\n".join([head, "", "| `model_type` | adapter | verdict | remark |", "| --- | --- | --- | --- |", *lines])


def written() -> str:
    """The table as it stands in the documentation."""
    found = re.search(r"<!-- families:begin -->\n(.*?)\n?<!-- families:end -->", PAGE.read_text("utf-8"), re.DOTALL)
    return found[1] if found else ""


def write(made: str) -> None:
    """Put a table into the documentation."""
    text = PAGE.read_text("utf-8")
    start, end = (text.index(f"<!-- families:{word} -->") for word in ("begin", "end"))
    PAGE.write_text(f"{text[:start]}<!-- families:begin -->\n{made}\n{text[end:]}", "utf-8")


if __name__ == "__main__":
    if not sys.argv[1:]:
        write(table())
    for name in sys.argv[1:]:
        test = tested(name)
        found = test if isinstance(test, str) else {r.name: [r.ok, r.text] for r in test.results}
        print(name, json.dumps(found, indent=1))
