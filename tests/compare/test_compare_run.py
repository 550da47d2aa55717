"""A whole comparison on the shipped six-layer model: its files, contract and failures, and going on after a stop."""

import json
import shutil
import sys
import time

import pytest
import yaml
from typer.testing import CliRunner

from tests import warm
from tokentrim.cli import app
from tokentrim.compare import run
from tokentrim.errors import ResultsError
from tokentrim.plugins.loader import registry
from tokentrim.runs import answer as execute

# The names that scripts rely on.
CELL_KEYS = {
    "method", "strategy", "task", "model", "n", "budget_requested", "layer_mean_tokens", "layer_mean_ratio",
    "flops_ratio", "kv_peak_ratio", "kv_mean_ratio", "kv_end_ratio", "kv_total_mean_ratio", "accuracy", "accuracy_low",
    "accuracy_high", "p_vs_none", "p_vs_random", "agreement", "prefill_seconds", "decode_seconds_per_token",
    "selection_seconds", "pruning_events", "failures",
}  # fmt: skip


def cell(summary, method, task, budget=0.5):
    found = [
        c
        for c in summary.cells
        if (c["method"], c["task"]) == (method, task) and c["budget_requested"] in (budget, None)
    ]
    assert len(found) == 1
    return found[0]


def test_the_summary_keeps_its_contract(finished):
    data = json.loads((finished.folder / "summary.json").read_text())
    assert {"command", "versions", "config_hash", "cells", "seeds", "matched_by", "notes"} <= set(data)
    for row in data["cells"]:
        assert set(row) >= CELL_KEYS
        assert row["failures"] == 0
        assert row["net_saving"] is None, "there was no timing pass"
        assert row["accuracy_low"] <= row["accuracy"] <= row["accuracy_high"]
        assert row["n"] == (4 if row["task"] == "where" else 3)


def test_budgets_are_met_and_measured(finished):
    for method in ("random", "fastv", "oracle"):
        row = cell(finished, method, "where")
        assert 0.45 <= row["layer_mean_ratio"] <= 0.5
        assert row["layer_mean_tokens"] == pytest.approx(100 * row["layer_mean_ratio"])
        assert row["pruning_events"] > 0
    faded = cell(finished, "vta", "list-all")
    assert faded["layer_mean_ratio"] == 1.0
    assert 0.35 <= faded["kv_mean_ratio"] <= 0.65
    none = cell(finished, "none", "where", None)
    assert none["kv_mean_ratio"] == none["flops_ratio"] == none["agreement"] == 1.0
    assert none["pruning_events"] == 0


def test_comparisons_are_with_the_right_rows(finished):
    assert cell(finished, "none", "where")["p_vs_none"] is None
    random = cell(finished, "random", "where")
    assert random["p_vs_random"] is None
    assert random["p_vs_none"] is not None
    fastv = cell(finished, "fastv", "where")
    assert fastv["p_vs_random"] is not None
    assert fastv["boundary"] == 2
    blind = [c for c in finished.cells if c["method"] == "text-only" and c["task"] == "where"]
    assert {c["boundary"] for c in blind} == {0, 2}
    beside = {c["boundary"]: c["accuracy"] for c in blind}
    assert fastv["text_only_accuracy"] == beside[2]
    assert random["text_only_accuracy"] == beside[0]


def test_every_question_has_its_line(finished):
    lines = [json.loads(line) for line in (finished.folder / "results.jsonl").read_text().splitlines()]
    assert len(lines) == sum(row["n"] for row in finished.cells)
    assert all(line["failure"] is None and line["prediction"] is not None for line in lines)
    first = next(line for line in lines if line["method"] == "none" and line["task"] == "where")
    sample = registry("task").get("where").samples("test", 1)[0]
    assert (first["sample"], first["question"], first["answer"]) == (sample.id, sample.question, sample.answer)


def test_what_cannot_be_reached_is_said_and_not_run(small, finished, tmp_path):
    assert {(row["method"], row["task"]) for row in finished.data["skipped"]} <= {("vta", "where")}
    report = (finished.folder / "report.md").read_text()
    assert "text-only@2" in report
    assert ("Not reachable" in report) == bool(finished.data["skipped"])


def test_pictures_are_drawn(finished):
    for name in ("pareto.png", "kept.png"):
        assert (finished.folder / name).read_bytes().startswith(b"\x89PNG")


def test_nothing_temporary_is_left(finished):
    names = {path.name for path in finished.folder.iterdir()}
    written = {path.name for path in finished.files.values()}
    assert names == {"cells", "config.json"} | written
    assert all(
        path.suffix == ".jsonl" and not path.name.startswith(".") for path in (finished.folder / "cells").iterdir()
    )


def test_the_same_comparison_gives_the_same_results(small, finished, tmp_path):
    again = run(small, tmp_path, formats=["csv"])
    assert (tmp_path / "results.jsonl").read_bytes() == (finished.folder / "results.jsonl").read_bytes()
    for mine, theirs in zip(again.cells, finished.cells, strict=True):
        untimed = {key for key in mine if not key.endswith("seconds") and "seconds_per" not in key}
        assert {key: mine[key] for key in untimed} == {key: theirs[key] for key in untimed}


@pytest.fixture
def again(finished, tmp_path):
    """A copy of the finished folder, for what writes into it."""
    return shutil.copytree(finished.folder, tmp_path / "again")


def test_finished_cells_are_not_run_again(small, again, monkeypatch):
    monkeypatch.setattr("tokentrim.runs.cells.load_model", lambda *_, **__: pytest.fail("it loads no model"))
    before = (again / "results.jsonl").read_bytes()
    run(small, again, formats=["csv"])
    assert (again / "results.jsonl").read_bytes() == before


def test_a_missing_cell_is_run_and_no_other(small, again, monkeypatch):
    lost = sorted((again / "cells").iterdir())[0]
    content = lost.read_text().splitlines()[1:]
    lost.unlink()
    ran = []
    run_cell = execute.run_cell
    monkeypatch.setattr(execute, "run_cell", lambda cell, *rest: ran.append(cell) or run_cell(cell, *rest))
    run(small, again, formats=["csv"])
    assert [f"{cell.key}.jsonl" for cell in ran] == [lost.name]
    assert lost.read_text().splitlines()[1:] == content


def test_another_configuration_is_refused(small, finished):
    with pytest.raises(ResultsError, match="differs in: samples"):
        run({**small, "samples": 5}, finished.folder)


ONE = {
    "models": ["testbed-plain"],
    "tasks": ["where"],
    "samples": 3,
    "strategies": ["random"],
    "budgets": [0.5],
    "text_only": False,
    "controls": [],
    "timing": False,
}


def test_a_question_that_fails_is_no_wrong_answer(tmp_path, monkeypatch):
    task = registry("task").get("where")
    score, bad = task.score, task.samples("test", 2)[1].id

    def broken(sample, prediction):
        if sample.id == bad:
            raise RuntimeError("no such luck")
        return score(sample, prediction)

    monkeypatch.setattr(task, "score", broken, raising=False)
    summary = run(ONE, tmp_path, formats=["csv"])
    assert summary.failures == 2
    assert "no such luck" in summary.first_cause
    for row in summary.cells:
        assert row["n"] == 2
        assert row["failures"] == 1
    lines = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    failed = [line for line in lines if line["failure"]]
    assert {line["sample"] for line in failed} == {bad}
    assert all(line["prediction"] is None and line["score"] is None for line in failed)
    monkeypatch.undo()
    assert run(ONE, tmp_path, formats=["csv"]).failures == 0, "failed cells are run again"


def test_a_run_that_prunes_nothing_fails(tmp_path, monkeypatch):
    from tokentrim import session

    trim = session.trim
    monkeypatch.setattr(session, "trim", lambda model, strategy, **more: trim(model, "none", **more))
    summary = run(ONE, tmp_path, formats=["csv"])
    assert summary.failures == 1
    assert "no pruning event" in summary.first_cause


@pytest.mark.slow
def test_a_killed_run_goes_on_where_it_stopped(small, finished, tmp_path):
    config, out = tmp_path / "c.yaml", tmp_path / "run"
    config.write_text(yaml.safe_dump(small))
    command = [sys.executable, "-m", "tokentrim", "compare", str(config), "--out", str(out)]
    process = warm.start(command, tmp_path / "said")
    deadline = time.monotonic() + 300
    while process.is_alive() and time.monotonic() < deadline:
        if len(list((out / "cells").glob("[!.]*.jsonl"))) >= 3:
            break
        time.sleep(0.02)
    process.kill()
    process.join()
    for path in (out / "cells").glob("[!.]*.jsonl"):
        assert all(json.loads(line) for line in path.read_text().splitlines())
    done = CliRunner().invoke(app, command[3:])
    assert done.exit_code == 0, done.stderr
    assert "finished before" in done.stdout
    assert (out / "results.jsonl").read_bytes() == (finished.folder / "results.jsonl").read_bytes()
