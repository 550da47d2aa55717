"""Whole calibrations on the shipped six-layer model: the file, its provenance, going on, what is refused."""

import json
import math
import sys
import time

import pytest
import torch
import yaml
from typer.testing import CliRunner

from tests import warm
from tokentrim.calibrate import measure, runner
from tokentrim.calibrate.likelihood import likelihood
from tokentrim.calibrate.measure import SPLIT, divergence
from tokentrim.calibrate.options import VTW, GSearch, PSigmoid, options_from
from tokentrim.calibrate.runner import NothingFound, first_within, run
from tokentrim.cli import app
from tokentrim.config.schedule_file import read_schedule
from tokentrim.config.specs import strategy_from
from tokentrim.errors import ConfigError, DataError, EngineError, ResultsError, UnknownNameError
from tokentrim.loading import load_model
from tokentrim.plugins.loader import registry
from tokentrim.runs.batches import answer_tokens, model_inputs
from tokentrim.runs.cells import Cell, locate
from tokentrim.runs.specs import TaskSpec
from tokentrim.runs.work import work_of

SMALL = {"model": "testbed-plain", "tasks": ["where", "what"], "samples": 3}
G = {**SMALL, "resolution": 0.25, "tolerance": 0.2}


def content(path):
    """A schedule file without the one thing that names its own path."""
    data = yaml.safe_load(path.read_text())
    del data["provenance"]["command"]
    return data


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    return run(options_from(GSearch, G), tmp_path_factory.mktemp("finished") / "g.yaml")


def test_the_file_runs_and_holds_the_quality_it_promises(finished):
    schedule, result = finished.schedule, finished.schedule.provenance["result"]
    assert read_schedule(finished.path) == schedule
    assert result["quality"] >= result["quality_unpruned"] - 0.2
    strategy = strategy_from(finished.strategy).strategy
    shape = locate(options_from(GSearch, G).model).shape
    layers = strategy.schedule(shape, 100).per_layer(6, 100)
    assert list(layers) == result["tokens_per_layer"]
    assert sum(layers) / 600 == pytest.approx(result["layer_mean_ratio"])
    assert schedule.made_for.layers == 6
    assert set(schedule.rates.values()) <= {0.0, 0.25, 0.5, 0.75, 1.0}


def test_the_provenance_says_how_it_was_found(finished):
    found = finished.schedule.provenance
    assert found["split"] == "calibration"
    assert found["model"]["name"] == "testbed-plain"
    assert found["model"]["fingerprint"] == locate(options_from(GSearch, G).model).fingerprint
    assert found["options"]["samples"] == 3
    assert [task["task"] for task in found["options"]["tasks"]] == ["where", "what"]
    assert {"tokentrim", "torch", "transformers"} <= set(found["versions"])
    assert "tokentrim.calibrate.run" in found["command"]
    assert all({"boundary", "rate", "quality", "holds"} == set(entry) for entry in found["trace"])
    first_line = finished.path.read_text().splitlines()[0]
    assert first_line == "# strategy: {file: g.yaml, name: layer-counts}"


def test_nothing_but_the_schedule_is_left(finished):
    assert [path.name for path in finished.path.parent.iterdir()] == ["g.yaml"]


def test_a_finished_calibration_is_not_run_again(finished, monkeypatch):
    monkeypatch.setattr("tokentrim.runs.cells.load_model", lambda *_, **__: pytest.fail("it loads no model"))
    before = finished.path.read_bytes()
    assert run(options_from(GSearch, G), finished.path).schedule == finished.schedule
    assert finished.path.read_bytes() == before


def test_a_file_of_anything_else_is_not_overwritten(finished, tmp_path):
    with pytest.raises(ResultsError, match="be of this calibration"):
        run(options_from(GSearch, {**G, "samples": 4}), finished.path)
    notes = tmp_path / "notes.yaml"
    notes.write_text("my: notes\n")
    with pytest.raises(ResultsError, match="be a new file"):
        run(options_from(GSearch, G), notes)
    assert notes.read_text() == "my: notes\n"


def test_the_test_split_is_never_read(tmp_path, monkeypatch):
    task = registry("task").get("where")
    samples, splits = task.samples, []
    monkeypatch.setattr(task, "samples", lambda split, n: splits.append(split) or samples(split, n), raising=False)
    options = options_from(PSigmoid, {**SMALL, "tasks": ["where"], "trials": 3, "budget": 0.4})
    run(options, tmp_path / "p.yaml")
    assert set(splits) == {"calibration"}


def test_a_stopped_search_goes_on_and_ends_as_if_nothing_had_happened(finished, tmp_path, monkeypatch):
    score, calls = measure._score, []

    def counted(cell, work, stop=None):
        if stop is not None and len(calls) == stop:
            raise KeyboardInterrupt
        calls.append(cell.key)
        return score(cell, work)

    monkeypatch.setattr(measure, "_score", lambda cell, work: counted(cell, work, stop=5))
    with pytest.raises(KeyboardInterrupt):
        run(options_from(GSearch, G), tmp_path / "g.yaml")
    assert [path.name for path in tmp_path.iterdir()] == [".g.yaml.state.json"]
    monkeypatch.setattr(measure, "_score", counted)
    run(options_from(GSearch, G), tmp_path / "g.yaml")
    assert len(calls) == len(set(calls)), "nothing is measured twice"
    assert content(tmp_path / "g.yaml") == content(finished.path)
    assert [path.name for path in tmp_path.iterdir()] == ["g.yaml"]


@pytest.mark.slow
def test_a_killed_search_goes_on_where_it_stopped(tmp_path):
    pause = "import time\nfrom tokentrim.calibrate import measure\nscore = measure._score\n"
    pause += "measure._score = lambda *given: time.sleep(0.2) or score(*given)\n"
    arguments = "calibrate psigmoid --model testbed-plain --task where --samples 3 --trials 6 --budget 0.4 --out"

    values = {"model": "testbed-plain", "tasks": ["where"], "samples": 3, "trials": 6, "budget": 0.4}
    run(options_from(PSigmoid, values), tmp_path / "whole.yaml")
    out = tmp_path / "killed.yaml"
    words = [*arguments.split(), str(out)]
    code = f"import sys\nfrom tokentrim.cli import main\n{pause}sys.argv[1:] = {words!r}\nmain()"
    state = tmp_path / ".killed.yaml.state.json"
    process = warm.start([sys.executable, "-c", code], tmp_path / "said")
    deadline = time.monotonic() + 300
    while process.is_alive() and time.monotonic() < deadline:
        if state.exists() and len(json.loads(state.read_text())["measured"]) >= 2:
            break
        time.sleep(0.02)
    process.kill()
    process.join()
    assert not out.exists()
    assert len(json.loads(state.read_text())["measured"]) >= 2
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.stderr
    assert "were taken before" in done.stdout
    assert content(out) == content(tmp_path / "whole.yaml")


def test_psigmoid_meets_its_budget(tmp_path):
    options = options_from(PSigmoid, {**SMALL, "tasks": ["where"], "trials": 4, "budget": 0.35})
    done = run(options, tmp_path / "p.yaml")
    assert sum(done.schedule.provenance["result"]["tokens_per_layer"]) == 210
    assert done.schedule.provenance["versions"]["optuna"]


# ---------------------------------------------------------------------- withdrawal


def test_divergence_is_the_sum_of_the_formula():
    p, q = torch.tensor([0.5, 0.25, 0.25]).double(), torch.tensor([0.125, 0.5, 0.375]).double()
    pairs = list(zip(p.tolist(), q.tolist(), strict=True))
    forward, backward = sum(a * math.log(a / b) for a, b in pairs), sum(b * math.log(b / a) for a, b in pairs)
    assert abs(forward - backward) > 0.01
    assert divergence(p.log(), q.log(), "withdrawn-full") == pytest.approx(forward, abs=1e-12)
    assert divergence(p.log(), q.log(), "full-withdrawn") == pytest.approx(backward, abs=1e-12)
    assert divergence(p.log(), p.log(), "withdrawn-full") == 0.0


def test_the_first_boundary_within_eta():
    curve = {5: 0.4, 6: 0.003, 7: 0.01, 8: 0.0}
    assert first_within(curve, 0.003) == 6
    assert first_within(curve, 0.002) == 8
    assert first_within({5: 1.0}, 0.5) is None


def test_vtw_finds_the_first_boundary_and_refuses_what_there_is_not(tmp_path):
    values = {**SMALL, "tasks": ["where"], "first": 3}
    with pytest.raises(NothingFound, match=r"eta of calibrate vtw must be at least") as caught:
        run(options_from(VTW, {**values, "eta": 0.0}), tmp_path / "v.yaml")
    assert caught.value.exit_code == 1
    assert [path.name for path in tmp_path.iterdir()] == [".v.yaml.state.json"]
    curve = json.loads((tmp_path / ".v.yaml.state.json").read_text())["measured"]
    assert len(curve) == 3
    second = sorted(curve.values())[1]
    done = run(options_from(VTW, {**values, "eta": second}), tmp_path / "v.yaml")
    trace = {entry["k"]: entry["divergence"] for entry in done.schedule.provenance["trace"]}
    assert list(trace) == [3, 4, 5]
    k = min(k for k, value in trace.items() if value <= second)
    assert done.schedule.counts == {k: 0}
    assert done.strategy == {"name": "vtw", "k": k}


# ---------------------------------------------------------------------- likelihood


@pytest.fixture(scope="module")
def work():
    loaded = load_model("testbed-plain", "cpu")
    target = locate(options_from(GSearch, G).model)

    def make(strategy):
        task = TaskSpec(task="list-all")
        spec = strategy_from(strategy)
        return Cell(target, task, 3, SPLIT, "x", spec, "fixed", 34, 2)

    return make, work_of(make("none"), loaded)


def test_the_likelihood_is_that_of_one_forward_over_prompt_and_answer(work):
    make, questions = work
    model = questions.loaded.model
    expected = []
    for batch in questions.batches:
        for row, sample in enumerate(batch.samples):
            answer = torch.tensor(answer_tokens(questions.loaded, sample.answer))
            inputs = model_inputs(questions.loaded, batch)
            real = inputs["attention_mask"][row].bool()
            ids = torch.cat([inputs["input_ids"][row][real], answer]).unsqueeze(0)
            with torch.inference_mode():
                logits = model(input_ids=ids, pixel_values=inputs["pixel_values"][row : row + 1]).logits[0].double()
            steps = logits.log_softmax(-1)[-len(answer) - 1 : -1]
            expected.append(sum(steps[i, token].item() for i, token in enumerate(answer)) / len(answer))
    assert likelihood(make("none"), questions) == pytest.approx(sum(expected) / len(expected), abs=1e-4)


def test_a_pruned_model_finds_the_answers_less_likely(work):
    make, questions = work
    full, blind = likelihood(make("none"), questions), likelihood(make({"name": "text-only", "k": 0}), questions)
    assert blind < full - 1


# ---------------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("kind", "values", "error", "message"),
    [
        (GSearch, {"first": 6}, ConfigError, "first of calibrate gsearch must be below 6"),
        (GSearch, {"first": 0}, ConfigError, "first of calibrate gsearch"),
        (GSearch, {"resolution": 0}, ConfigError, "resolution of calibrate gsearch"),
        (GSearch, {"quality": "accuracy"}, ConfigError, "'score' or 'likelihood'"),
        (GSearch, {"sampels": 3}, ConfigError, "Did you mean 'samples'"),
        (PSigmoid, {"budget": 0.1}, ConfigError, "the budget of psigmoid must be at least 0.1667"),
        (PSigmoid, {"budget": 1.5}, ConfigError, "budget of calibrate psigmoid"),
        (PSigmoid, {"trials": 1}, ConfigError, "trials of calibrate psigmoid"),
        (VTW, {"direction": "both"}, ConfigError, "direction of calibrate vtw"),
        (GSearch, {"tasks": ["wher"]}, UnknownNameError, "Did you mean 'where'"),
        (GSearch, {"model": "testbed-plane"}, UnknownNameError, "Did you mean 'testbed-plain'"),
        (GSearch, {"model": {"model": "testbed-plain", "device": "tpu"}}, ConfigError, "device"),
    ],
)
def test_bad_input_is_refused_before_anything_is_written(tmp_path, kind, values, error, message):
    with pytest.raises(error, match=message):
        run(options_from(kind, {**SMALL, **values}), tmp_path / "x.yaml")
    assert not [path for path in tmp_path.iterdir() if path.name == "x.yaml"]


def test_too_few_questions_and_failing_ones_stop_the_search(tmp_path, monkeypatch):
    task = registry("task").get("where")
    samples = task.samples
    monkeypatch.setattr(task, "samples", lambda split, n: samples(split, 2), raising=False)
    with pytest.raises(DataError, match="Lower .samples."):
        run(options_from(GSearch, {**SMALL, "tasks": ["where"]}), tmp_path / "x.yaml")
    monkeypatch.undo()

    def broken(sample, prediction):
        raise RuntimeError("no such luck")

    monkeypatch.setattr(task, "score", broken, raising=False)
    with pytest.raises(EngineError, match="no such luck"):
        run(options_from(GSearch, {**SMALL, "tasks": ["where"]}), tmp_path / "x.yaml")


def test_a_state_that_is_none_and_a_folder_that_is_not_there(tmp_path):
    (tmp_path / ".x.yaml.state.json").write_text("{}")
    with pytest.raises(ResultsError, match="be what tokentrim wrote there"):
        run(options_from(GSearch, SMALL), tmp_path / "x.yaml")
    with pytest.raises(ResultsError, match="be writable"):
        run(options_from(GSearch, SMALL), tmp_path / "none" / "x.yaml")


def test_the_default_questions_are_those_of_the_default_comparison():
    options = options_from(GSearch, {})
    assert options.model.model == "testbed"
    assert [task.task for task in options.tasks][:2] == ["color", "what"]
    assert {options.samples} | {task.samples for task in options.tasks} == {32, None}


def test_the_core_goes_through_the_registry():
    assert {runner.RUNS_IT, runner.WITHDRAWS, runner.REFERENCE} <= set(registry("strategy").names())
