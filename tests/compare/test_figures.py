"""The figures of a comparison: what is written, read back and documented is what the table of columns says."""

import json
import re
from dataclasses import fields
from pathlib import Path

import pytest

from tokentrim.compare.readback import schema_of
from tokentrim.compare.tables import against_random
from tokentrim.engine.report import Report
from tokentrim.runs.figures import FIGURES, REPORTED, figures_of

COMPARE = Path(__file__).parents[2] / "docs/compare.md"


def names(rows):
    return [figure.name for figure in figures_of(rows)]


@pytest.mark.parametrize(("part", "rows"), [("cells", "cells"), ("overall", "means")])
def test_rows_hold_the_figures_and_nothing_else(finished, part, rows):
    data = json.loads((finished.folder / "summary.json").read_text())
    assert data[part]
    for row in data[part]:
        assert list(row) == names(rows)


@pytest.mark.parametrize("rows", ["cells", "means"])
def test_figures_are_read_back(rows):
    assert list(schema_of(rows).model_fields) == names(rows)


def test_figures_are_documented():
    block = re.search(r"figures:begin -->\n(.*?)<!-- figures:end", COMPARE.read_text(encoding="utf-8"), re.DOTALL)[1]
    assert re.findall(r"^\| `(\w+)` \|", block, re.MULTILINE) == [figure.name for figure in FIGURES]


def test_every_figure_has_a_name_of_its_own_and_a_meaning():
    assert len({figure.name for figure in FIGURES}) == len(FIGURES)
    for figure in FIGURES:
        assert figure.title
        assert figure.meaning
        assert not figure.meaning.endswith(".")


def test_reported_figures_are_attributes_of_a_report():
    assert set(REPORTED) <= {field.name for field in fields(Report)} | {"early_exit_ratio"}


@pytest.mark.parametrize(
    ("p", "gain", "unit", "said"),
    [
        (0.009, 0.04, "%", "better +4.0, p = 0.009"),
        (0.009, -0.16, "%", "worse −16.0, p = 0.009"),
        (0.6, -0.011, "%", "−1.1, p = 0.600"),
        (0.0001, 3.25, "", "better +3.2, p < 0.001"),
        (0.009, None, "%", "p = 0.009"),
        (None, 0.04, "%", ""),
    ],
)
def test_a_p_value_says_in_which_direction(p, gain, unit, said):
    assert against_random({"p_vs_random_adjusted": p, "gain_vs_random": gain, "unit": unit}) == said
