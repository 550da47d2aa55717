"""Rank correlations with published numbers, of a comparison made by hand."""

import json

import numpy as np
import pytest

from tests import validity
from tests.published_table import data

KEPT = {"visionzip": 36, "holov": 34, "divprune": 32, "sparsevlm": 20, "prumerge": 10}


@pytest.fixture
def folder(tmp_path):
    """Five methods that answer so many of forty questions at every budget, and one that no source has."""
    rows, cells = [], []
    for method, right in {"none": 40, "random": 20, **KEPT}.items():
        cells.append({"method": method, "strategy": {"name": method}})
        for budget in [None] if method == "none" else validity.BUDGETS:
            for task in ("busy-color", "busy-sign"):
                about = {"method": method, "task": task, "budget_requested": budget}
                rows += [{**about, "sample": f"{task}/{i}", "score": float(i < right)} for i in range(40)]
    (tmp_path / "results.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "summary.json").write_text(json.dumps({"cells": cells}))
    return tmp_path


def test_published_shares_are_of_the_unpruned_row_and_the_mean_of_sources():
    found = data()
    shares = validity.published_share(found, "visionzip", 64, ("GQA", "POPE"))
    assert shares == pytest.approx({"GQA": 55.1 / 61.9, "POPE": 77.0 / 85.9})
    assert validity.published_share(found, "dart", 64, ("GQA",)) == pytest.approx({"GQA": (55.9 + 54.7) / 2 / 61.9})
    layer_mean = validity.published_share(found, "fastv", 64, ("GQA", "POPE"))
    assert layer_mean == pytest.approx({"GQA": 44.1 / 61.9}), "POPE is not printed there"
    assert not validity.published_share(found, "st3", 64, ("GQA",))


def test_standings(folder):
    found = validity.standing(folder, "fine", 0.11)
    assert found.methods == [*KEPT]
    np.testing.assert_allclose(found.here, [n / 40 for n in KEPT.values()])
    # Published at 64 tokens: 55.5, 55.4, 55.0, 53.4 and 54.0 of 58.2.
    np.testing.assert_array_equal(found.apart(), [0, 0, 0, 1, -1])
    rho = found.correlations()
    assert rho[0] == pytest.approx(0.9)
    assert rho.shape == (1 + validity.DRAWS,)
    assert np.nanpercentile(rho[1:], 2.5) < 0.9


def test_the_page_gets_its_tables(folder, tmp_path, monkeypatch):
    page = tmp_path / "validity.md"
    page.write_text("before\n<!-- results:begin -->\nold\n<!-- results:end -->\nbehind\n")
    monkeypatch.setattr(validity, "PAGE", page)
    validity.main(folder)
    text = page.read_text()
    assert text.startswith("before\n<!-- results:begin -->\n| grain |")
    assert text.endswith("<!-- results:end -->\nbehind\n")
    assert "old" not in text
    assert "| `visionzip` | 90.0 |" in text
    assert "Stand lower here by 4 ranks or more: none." in text
