"""The table of docs/families.md says what the self-test says, and what each command does on a family that it proves.

A row that is made anew walks a small copy of its family through ``run``, ``plan``, ``compare``, ``explain`` and
``bench``: the table cannot say that a command works where it does not. Here one family of each adapter is walked so;
the others through the commands that their remarks come from, because the rest ask the adapter alone.
"""

from __future__ import annotations

import re

import pytest
import transformers

from tests.family_table import model_types, row, written
from tests.family_walk import COMMANDS, REMARKED
from tokentrim.contracts.token_places import IN_ORDER

pytestmark = [
    pytest.mark.skipif(
        f"transformers {transformers.__version__}," not in written(), reason="the table is of another transformers"
    ),
    # Of transformers and strangers' towers; but nothing of a small copy may have shrunk to nothing.
    pytest.mark.filterwarnings("default", "error:Initializing zero-element tensors"),
]

_SAMPLE = ("gemma3", "got_ocr2", "internvl", "mllama", "qwen3_5")
_NOWHERE = {"got_ocr2", "idefics2", "pp_chart2table"}  # whose tokens do not lie in the order of a raster


def rows() -> dict[str, str]:
    lines = [line for line in written().splitlines() if "| works |" in line or "| refused |" in line]
    return {re.findall(r"`([\w.-]+)`", line)[0]: line for line in lines}


def test_every_family_has_its_row() -> None:
    assert list(rows()) == model_types()
    works = sum("| works |" in line for line in rows().values())
    assert f"{works} of {len(rows())} families work" in written()


def test_every_command_works_on_every_proven_family() -> None:
    proven = {name: line.split(" | ") for name, line in rows().items() if "| works |" in line}
    assert {name: cells[3] for name, cells in proven.items() if cells[3] != "all"} == {}
    assert {name for name, cells in proven.items() if IN_ORDER in cells[4]} == _NOWHERE
    assert {name for name, cells in proven.items() if "not counted" in cells[4] or "wrong: " in cells[4]} == set()


def test_refusals_are_whole() -> None:
    assert not [line for line in rows().values() if "..." in line]


@pytest.mark.parametrize("model_type", _SAMPLE)
def test_the_rows_of_some_families_are_fresh(model_type: str) -> None:
    assert rows()[model_type] == row(model_type), "run: python -m tests.family_table"


@pytest.mark.slow
@pytest.mark.parametrize("part", range(6))
def test_every_other_row_is_fresh(part: int) -> None:
    """In parts, which run side by side."""
    known = rows()
    first = {line.split(" | ")[1]: model_type for model_type, line in reversed(known.items()) if "| works |" in line}
    others = [model_type for model_type in known if model_type not in _SAMPLE]
    stale = [
        model_type
        for model_type in others[part::6]
        if known[model_type] != row(model_type, COMMANDS if model_type in first.values() else REMARKED)
    ]
    assert not stale, "run: python -m tests.family_table"
