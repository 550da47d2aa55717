"""Budgets as shares of measured time: the search over a knob, and that a measurement is kept."""

import random
from dataclasses import replace

import pytest

from tokentrim.compare import matching, run
from tokentrim.compare.config import load_compare
from tokentrim.compare.expand import expand
from tokentrim.compare.folder import ResultsFolder
from tokentrim.counting.forecast import plan
from tokentrim.runs.batches import Batch
from tokentrim.runs.cells import locate
from tokentrim.runs.results import CellResult
from tokentrim.runs.work import Unreachable, measured

BATCH = Batch((0,), (), {}, 100, (20,))


def cell_of(strategy, budget=0.5):
    config = load_compare({"models": ["testbed-plain"], "tasks": ["where"], "controls": [], "text_only": False,
                           "strategies": [strategy],
                           "budgets": {"match": "prefill_time_ratio", "values": [budget]}})  # fmt: skip
    cells = expand(config, [locate(config.models[0])])
    return next(cell for cell in cells if cell.budget is not None)


def planned(cell, fixed=0.3):
    """A clock on which time is a fixed part and the rest in proportion to planned FLOPs."""

    def share(strategy, anew=False):
        found = plan(strategy, cell.model.shape, 100, 20, 1).usage.flops_ratio
        return {"share": fixed + (1 - fixed) * found, "low": 0.0, "high": 1.0, "repeats": 3}

    return share


@pytest.mark.parametrize("strategy", ["uniform", "fastv", "pvtp", "vtw", {"name": "pool"}])
def test_the_costliest_setting_that_is_not_above_the_budget_is_found(strategy):
    cell = cell_of(strategy, 0.7)
    share = planned(cell)
    row = matching._solve(cell, BATCH, share)
    found = matching._solved(row)
    assert found.about["realised"] <= 0.7 + 0.002  # time is a line in tokens but for attention among them
    exact = cell.strategy.strategy.at_budget(cell.model.shape, 100, flops_ratio=(0.7 - 0.3) / 0.7, n_text=20)[0]
    assert found.about["realised"] == pytest.approx(share(exact)["share"], abs=0.01)
    assert measured(replace(cell, solved=found)) == found.strategy.strategy
    assert len(found.about["probes"]) <= 2 + 2 * 9 + 1


def test_noise_of_a_twentieth_moves_the_budget_by_little():
    cell, draw = cell_of("uniform", 0.7), random.Random(0)
    share = planned(cell)

    def noisy(strategy, anew):
        found = share(strategy)
        return {**found, "share": found["share"] * draw.uniform(0.95, 1.05)}

    for _ in range(20):
        found = matching._solved(matching._solve(cell, BATCH, noisy))
        assert share(found.strategy.strategy)["share"] == pytest.approx(0.7, abs=0.02)


@pytest.mark.parametrize(("disturbed", "factor"), [(3, 3.0), (4, 0.2), (6, 3.0)])
def test_one_disturbed_measurement_does_not_decide(disturbed, factor):
    cell = cell_of("uniform", 0.7)
    share, asked = planned(cell), []

    def noisy(strategy, anew):
        found = share(strategy)
        asked.append(anew)
        return {**found, "share": found["share"] * factor} if len(asked) == disturbed else found

    found = matching._solved(matching._solve(cell, BATCH, noisy))
    calm = matching._solved(matching._solve(cell, BATCH, share))
    assert found.about["realised"] == pytest.approx(calm.about["realised"], abs=0.05 * 0.7)
    assert True in asked


@pytest.mark.parametrize(("from_", "best"), [(50, 49), (97, 96), (100, 99)])
def test_a_step_in_time_is_not_crossed(from_, best):
    """A kernel that changes at some size: no line is near such times, and nothing far above the budget is taken."""
    shares = []

    def cost(index, anew):
        shares.append((index, 0.4 + 0.001 * index if index < from_ else 1.5))
        return shares[-1][1]

    found = matching._searched((0, 100), lambda index: 10 + index, cost, 0.7)
    assert best - 15 <= found <= best
    assert shares[-1] == (found, 0.4 + 0.001 * found)


def test_a_machine_that_never_rests_ends_the_search_all_the_same():
    cell = cell_of("uniform", 0.7)
    asked = []

    def wild(strategy, anew):
        asked.append(strategy)
        return {"share": 0.1 if len(asked) in (1, 2) or len(asked) % 2 else 2.0, "low": 0, "high": 1, "repeats": 3}

    matching._solve(cell, BATCH, wild)
    assert len(asked) <= 2 + 4 * 9 + 2


def test_a_budget_below_the_cheapest_setting_is_out_of_reach():
    cell = cell_of("uniform", 0.2)
    found = matching._solved(matching._solve(cell, BATCH, planned(cell)))
    with pytest.raises(Unreachable, match="unpruned prefill time"):
        measured(replace(cell, solved=found))


def test_a_knob_that_leaves_prefill_alone_cannot_be_matched_by_its_time():
    cell = cell_of({"strategy": "vta", "match": "prefill_time_ratio"})
    found = matching._solved(matching._solve(cell, BATCH, planned(cell)))
    with pytest.raises(Unreachable, match="tokens of prefill"):
        measured(replace(cell, solved=found))


def test_finished_cells_need_no_measurement(tmp_path, monkeypatch):
    cell = cell_of("uniform")
    monkeypatch.setattr("tokentrim.runs.cells.load_model", lambda *_, **__: pytest.fail("nothing is to be measured"))
    folder = ResultsFolder(tmp_path)
    assert matching.solve_measured([cell], {cell.key: CellResult({}, [])}, folder, None) == [cell]


@pytest.mark.slow
def test_a_comparison_at_equal_time(tmp_path):
    config = {
        "models": ["testbed-plain"],
        "tasks": ["where"],
        "samples": 2,
        "strategies": ["uniform"],
        "controls": ["downscale"],
        "budgets": {"match": "prefill_time_ratio", "values": [0.95]},
        "text_only": False,
        "timing": {"repeats": 3, "questions": 1, "new_tokens": 2, "memory": False},
    }
    summary = run(config, tmp_path, formats=["csv"])
    assert summary.failures == 0
    rows = {row["method"]: row for row in (*summary.cells, *summary.data["skipped"])}
    assert set(rows) == {"none", "uniform", "downscale"}
    if "skipped" not in rows["uniform"] or rows["uniform"]["skipped"] is None:
        assert rows["uniform"]["budget_realised"] == rows["uniform"]["prefill_time_ratio"]
    before = sorted(path.name for path in (tmp_path / "knobs").iterdir())
    (next((tmp_path / "cells").iterdir())).unlink()
    run(config, tmp_path, formats=["csv"])
    assert sorted(path.name for path in (tmp_path / "knobs").iterdir()) == before
