"""FitPrune's calibration: the rule against its loop, and a recipe that cuts what was asked for."""

import pytest
import torch
from hypothesis import given, strategies as st

from tokentrim.calibrate.fitprune import Deleted, Deleting, counts_of, deletable, fit, measured
from tokentrim.calibrate.options import FitSearch, options_from
from tokentrim.calibrate.runner import NothingFound, run
from tokentrim.config.schedule_file import read_schedule
from tokentrim.config.specs import strategy_from
from tokentrim.loading import load_model
from tokentrim.runs.cells import Cell, locate
from tokentrim.runs.work import work_of

VALUES = {"model": "testbed-plain", "tasks": ["where"], "samples": 3}


@given(values=st.lists(st.integers(0, 20), min_size=1, max_size=20), least=st.integers(0, 120), pad=st.integers(0, 3))
def test_the_longest_run_that_leaves_enough_less_one(values, least, pad):
    expected = len(values) - 1
    for gone in range(len(values)):
        if sum(values) - sum(sorted(values)[:gone]) < least:
            expected = max(gone - 1, 0)
            break
    scores = torch.tensor([[*map(float, values), *[7.0] * pad]])
    assert deletable(scores, torch.tensor([len(values)]), torch.tensor([float(least)])).tolist() == [expected]


def test_nothing_goes_behind_the_layer_that_meets_the_target():
    deleted = Deleted(gone=(0.5, 0.2, 0.1, 0.0), flops=(1.0, 0.4, 0.2, 0.1))
    assert deleted.until(0.1) == ((0.5, 0.0, 0.0, 0.0), pytest.approx(0.45))  # (1 + 3 x 0.4) / 4 is left
    assert deleted.until(0.5) == ((0.5, 0.2, 0.0, 0.0), pytest.approx(0.55))
    assert deleted.until(0.9) == ((0.5, 0.2, 0.1, 0.0), pytest.approx(0.575))
    assert counts_of((0.5, 0.2, 0.1, 0.0), 10) == (10, 5, 3, 2)


def test_the_least_alpha_that_meets_the_target_is_found():
    def measure(alpha: float) -> Deleted:
        return Deleted(gone=(alpha, 0.0), flops=(1.0, 1 - alpha))

    alpha, trace = fit(measure, 0.2)  # half of alpha goes
    assert alpha == pytest.approx(0.4, abs=0.01)
    assert alpha >= 0.4
    assert len(trace) == 7
    assert fit(measure, 0.6)[0] is None


@pytest.fixture(scope="module")
def work():
    options = options_from(FitSearch, VALUES)
    loaded = load_model("testbed-plain", "cpu")
    cell = Cell(locate(options.model), options.tasks[0], 3, "calibration", "none", strategy_from("none"), "fixed", 1, 2)
    return work_of(cell, loaded)


def test_more_may_go_the_more_attention_may(work):
    whole = {}
    found = [Deleted.mean([measured(work, alpha, 2, whole)]) for alpha in (0.0, 0.3, 0.7)]
    assert len(whole) == 2  # batches
    assert found[0].gone == (0.0,) * 6
    assert sum(found[0].gone) < sum(found[1].gone) < sum(found[2].gone) <= 1
    assert all(one.gone[0] == one.gone[-1] == 0 for one in found)  # nothing in front of boundary 2
    assert all(one.flops[:2] == (1.0, 1.0) for one in found)


def test_a_recipe_is_written_and_runs(tmp_path):
    out = tmp_path / "fit.yaml"
    done = run(options_from(FitSearch, {**VALUES, "flops_cut": 0.3}), out)
    result = done.schedule.provenance["result"]
    assert result["flops_cut"] == pytest.approx(0.3, abs=0.1)
    assert read_schedule(out) == done.schedule
    assert done.strategy == {"name": "fitprune", "file": str(out)}
    shape = locate(options_from(FitSearch, VALUES).model).shape
    layers = strategy_from(done.strategy).strategy.schedule(shape, 100).per_layer(6, 100)
    assert list(layers) == result["tokens_per_layer"]
    assert [path.name for path in tmp_path.iterdir()] == ["fit.yaml"]
    again = run(options_from(FitSearch, {**VALUES, "flops_cut": 0.3}), out)
    assert again.schedule == done.schedule


def test_a_target_beyond_reach_is_refused(tmp_path):
    with pytest.raises(NothingFound, match=r"flops_cut of calibrate fitprune must be at most"):
        run(options_from(FitSearch, {**VALUES, "flops_cut": 0.9, "first": 4}), tmp_path / "fit.yaml")


def test_without_alpha_nothing_goes():
    assert Deleting().alpha is None
