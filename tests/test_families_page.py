"""The table of docs/families.md says what the self-test says."""

from __future__ import annotations

import re

import pytest
import transformers

from tests.family_table import model_types, row, written

pytestmark = pytest.mark.skipif(
    f"transformers {transformers.__version__}," not in written(), reason="the table is of another transformers"
)

_SAMPLE = ("gemma3", "internvl", "llava", "mllama", "qwen3_5")


def rows() -> dict[str, str]:
    lines = [line for line in written().splitlines() if "| works |" in line or "| refused |" in line]
    return {re.findall(r"`([\w.-]+)`", line)[0]: line for line in lines}


def test_every_family_has_its_row() -> None:
    assert list(rows()) == model_types()
    works = sum("| works |" in line for line in rows().values())
    assert f"{works} of {len(rows())} families work" in written()


@pytest.mark.parametrize("model_type", _SAMPLE)
@pytest.mark.filterwarnings("default")
def test_the_rows_of_some_families_are_fresh(model_type: str) -> None:
    assert rows()[model_type] == row(model_type), "run: python -m tests.family_table"


@pytest.mark.slow
@pytest.mark.parametrize("part", range(6))
@pytest.mark.filterwarnings("default")
def test_every_other_row_is_fresh(part: int) -> None:
    """In parts, which run side by side."""
    others = [model_type for model_type in rows() if model_type not in _SAMPLE]
    stale = [model_type for model_type in others[part::6] if rows()[model_type] != row(model_type)]
    assert not stale, "run: python -m tests.family_table"
