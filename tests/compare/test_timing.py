"""The timing pass: its rows, its verdicts, and that nothing is measured twice. No test asserts a time."""

import json

import pytest

from tokentrim.compare import run, timing
from tokentrim.compare.tables import time_grid
from tokentrim.runs.spread import Spread

SMALL = {
    "models": ["testbed-plain"],
    "tasks": ["where", {"task": "list-all", "samples": 2}],
    "samples": 2,
    "strategies": ["oracle", {"strategy": {"name": "vta", "horizon": 2}, "match": "kv_ratio"}],
    "budgets": [0.5],
    "controls": ["downscale"],
    "text_only": False,
    "timing": {"repeats": 3, "questions": 2, "new_tokens": 2},
}


@pytest.fixture(scope="module")
def timed(tmp_path_factory):
    return run(SMALL, tmp_path_factory.mktemp("timed"))


def test_every_method_and_budget_is_timed_beside_the_unpruned_model(timed):
    rows = timed.data["timings"]
    assert [row["method"] for row in rows] == ["none", "downscale", "oracle", "vta"]
    assert {row["task"] for row in rows} == {"list-all"}, "the task with the longest answers"
    for row in rows:
        assert (row["repeats"], row["questions"], row["new_tokens"]) == (3, 2, 2)
        for name in ("prefill", "decode", "total"):
            for kind in ("spread", "unpruned_spread", "ratio_spread"):
                spread = row[f"{name}_{kind}"]
                assert 0 < spread["low"] <= spread["median"] <= spread["high"]
                assert spread["n"] == 3
        assert row["prefill_spread"]["median"] < row["total_spread"]["median"]
        assert 0 <= row["selection_spread"]["median"] < row["total_spread"]["median"]
        assert row["peak_bytes"] > 0
    oracle = next(row for row in rows if row["method"] == "oracle")
    assert oracle["peak_memory_ratio"] < 1.0
    assert oracle["selection_spread"]["median"] > 0


def test_rows_of_all_tasks_carry_the_times_of_their_method(timed):
    row = next(row for row in timed.data["timings"] if row["method"] == "oracle")
    for cell in (cell for cell in timed.cells if cell["method"] == "oracle"):
        assert cell["prefill_time_ratio"] == row["prefill_time_ratio"]
        assert cell["total_verdict"] in (timing.SAVING, timing.UNCLEAR, timing.NO_SAVING)
    assert len(time_grid(timed.data, "testbed-plain")[1]) == 4
    assert "in turn with the unpruned" in (timed.folder / "report.md").read_text()


def test_the_net_saving_is_of_the_whole_run(timed):
    header, lines = time_grid(timed.data, "testbed-plain")
    for row, line in zip(timed.data["timings"], lines, strict=True):
        assert row["net_saving"] == 1 - row["total_time_ratio"]
        assert line[header.index("net saving")] == f"{100 * row['net_saving']:.1f}"
        for cell in (*timed.cells, *timed.overall):
            if (cell["method"], cell["budget_requested"]) == (row["method"], row["budget_requested"]):
                assert cell["net_saving"] == row["net_saving"]
    assert "share of the unpruned run&#39;s time that is saved" in (timed.folder / "report.html").read_text()


def test_what_was_timed_is_not_timed_again(timed, monkeypatch):
    monkeypatch.setattr(timing, "run_once", lambda *_: pytest.fail("timed already"))
    monkeypatch.setattr("tokentrim.runs.cells.load_model", lambda *_, **__: pytest.fail("it loads no model"))
    before = json.loads((timed.folder / "summary.json").read_text())["timings"]
    assert run(SMALL, timed.folder).data["timings"] == before


def test_a_verdict_needs_more_than_the_spread_of_the_unpruned_runs():
    unpruned = Spread(median=1.0, low=0.95, high=1.05, n=5)
    assert timing.verdict(Spread(0.8, 0.75, 0.85, 5), unpruned) == timing.SAVING
    assert timing.verdict(Spread(0.8, 0.75, 0.95, 5), unpruned) == timing.UNCLEAR
    assert timing.verdict(Spread(1.2, 1.05, 1.30, 5), unpruned) == timing.UNCLEAR
    assert timing.verdict(Spread(1.2, 1.15, 1.30, 5), unpruned) == timing.NO_SAVING
