"""What the self-test and the commands say of every family that transformers ships as image-text-to-text, for the docs.

``python -m tests.family_table`` writes the table into docs/families.md anew (minutes); with model types behind it, it
prints all checks of these instead.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path

import transformers
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

from tests.family_walk import COMMANDS, walk
from tests.small_families import adapter_of, config_of
from tokentrim.contracts.token_places import IN_ORDER
from tokentrim.errors import TokentrimError
from tokentrim.loading import known_model_types
from tokentrim.selftest import SelfTest, model_class_of, self_test

PAGE = Path(__file__).parent.parent / "docs/families.md"
_HINT = " This model needs an adapter of its own, "


def model_types() -> list[str]:
    """All that transformers knows."""
    return sorted(MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES)


def tested(model_type: str) -> SelfTest | str:
    """The self-test of a family's default configuration, or why there is none."""
    try:
        config = config_of(model_type)
        return self_test(model_class_of(config), config, adapter_of(model_type))
    except TokentrimError as error:
        return str(error)
    except Exception as error:
        return f"its default configuration makes no model: {type(error).__name__}: {error}"


def row(model_type: str, commands: Sequence[str] = COMMANDS) -> str:
    """One line of the table, of whose commands only some may be walked; the others are then taken to work."""
    test = tested(model_type)
    adapter = known_model_types().get(model_type, "generic")
    if isinstance(test, str):
        return _refused(model_type, adapter, test)
    refusal = test.refusal
    if refusal is not None:
        whole = refusal.name in ("layout", "small copy")
        return _refused(model_type, adapter, refusal.text if whole else f"{refusal.name}: {refusal.text}")
    without = [
        f"without {' '.join(sorted(need.value for need in result.takes))}: {result.text}"
        for result in test.results
        if result.ok is False
    ]
    windowed = [result.text for result in test.results if result.name == "windows" and "refused" in result.text]
    walked = walk(model_type, test, commands)
    failed = [f"{command}: {said}" for command, said in walked.failures.items()]
    drawn = [] if walked.in_place else [IN_ORDER]
    counted = [] if walked.counted else ["the vision tower is not counted"]
    serving = [command for command in COMMANDS if command not in walked.failures]
    wrong = [f"wrong: {what}" for what in walked.wrong]
    remark = "; ".join([*without, *windowed, *drawn, *counted, *failed, *wrong])
    return _line(model_type, adapter, "works", "all" if serving == [*COMMANDS] else ", ".join(serving), remark)


def _refused(model_type: str, adapter: str, why: str) -> str:
    return _line(model_type, adapter, "refused", "–", why.removesuffix("if it can have one.").removesuffix(_HINT))


def _line(model_type: str, adapter: str, verdict: str, commands: str, remark: str) -> str:
    clean = " ".join(remark.split()).replace("|", "\\|").replace("<", "\\<").rstrip(".: ")
    return f"| `{model_type}` | {adapter} | {verdict} | {commands} | {clean} |"


def table() -> str:
    """Markdown: a line with the version, then one row per family."""
    return framed([row(model_type) for model_type in model_types()])


def framed(lines: list[str]) -> str:
    """Rows under their heading."""
    works = sum("| works |" in line for line in lines)
    head = f"Of transformers {transformers.__version__}, {works} of {len(lines)} families work:"
    titles = ["| `model_type` | adapter | verdict | commands | remark |", "| --- | --- | --- | --- | --- |"]
    return "\n".join([head, "", *titles, *lines])


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
