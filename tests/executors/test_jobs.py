"""Jobs: the backlog's order, and cells that travel to another process and are the same there."""

import os
import pickle
from dataclasses import replace

import pytest

from tokentrim.compare.config import load_compare
from tokentrim.compare.expand import expand
from tokentrim.errors import ConfigError, StrategyError, UnsupportedError
from tokentrim.executors.backlog import Backlog
from tokentrim.executors.base import Job
from tokentrim.executors.workplace import Workplace, job_of, opened, packed
from tokentrim.plugins.loader import registry
from tokentrim.runs import cells as cells_module
from tokentrim.runs.cells import locate


def job(key, model="a", task="x"):
    return Job(key, key, model, task, "cpu", os.getcwd(), None, {})


def test_a_worker_stays_with_its_task_and_then_with_its_model():
    backlog = Backlog([job("1"), job("2", "b"), job("3", task="y"), job("4")], 0, print)
    taken = [backlog.take()]
    while len(backlog):
        taken.append(backlog.take(taken[-1]))
    assert [each.key for each in taken] == ["1", "4", "3", "2"]
    assert backlog.take(taken[-1]) is None


def test_a_lost_job_comes_back_until_its_retries_are_spent():
    said = []
    backlog = Backlog([job("1"), job("2")], 1, said.append)
    first = backlog.take()
    assert backlog.lost(first, "it fell.\n over ") is None
    assert said == ["lost: 1: it fell. over; it is run again, attempt 2 of 2"]
    assert backlog.take() is first
    outcome = backlog.lost(first, "it fell")
    assert (outcome.result, outcome.cause) == (None, "its worker died 2 times, the last one so: it fell")
    assert backlog.take().key == "2"


def cells_of(strategies, model="testbed-plain", **more):
    config = load_compare({"models": [model], "tasks": ["where"], "samples": 2, "strategies": strategies, **more})
    return expand(config, [locate(spec) for spec in config.models])


def travelled(cell):
    """A cell after a journey: through the bytes that another process is sent."""
    return opened(pickle.loads(pickle.dumps(packed(job_of(cell)))))


def cells_by_name():
    """The cells of every registered strategy that its name alone makes; controls beside the first alone."""
    alone = {"controls": [], "text_only": False, "budgets": [0.5]}
    for number, name in enumerate(registry("strategy").names()):
        try:
            yield from cells_of([name], "testbed", **(alone if number else {}))
        except (ConfigError, StrategyError):  # it needs a file or a parameter
            continue


def test_every_strategy_travels():
    for cell in cells_by_name():
        there = travelled(cell)
        assert (there.key, there.about(), there.strategy.as_dict()) == (
            cell.key, cell.about(), cell.strategy.as_dict(),
        )  # fmt: skip


def test_a_folder_is_found_from_the_callers_own_place(monkeypatch, tmp_path):
    from tokentrim.testbed import model_folder

    (tmp_path / "model").symlink_to(model_folder("testbed-plain"))
    monkeypatch.chdir(tmp_path)
    config = load_compare({"models": ["model"], "tasks": ["where"], "strategies": ["fastv"]})
    cell = expand(config, [locate(spec) for spec in config.models])[0]
    sent = packed(job_of(cell))
    monkeypatch.chdir("/")
    there = opened(sent)
    assert (there.key, there.model.name) == (cell.key, "model")
    assert os.getcwd() == str(tmp_path)


def test_a_machine_with_other_versions_is_refused(monkeypatch):
    sent = packed(job_of(cells_of(["fastv"])[0]))
    there = {**cells_module.versions(), "torch": "1.0"}
    monkeypatch.setattr(cells_module, "versions", lambda: there)
    reply = Workplace().attempt(sent)
    with pytest.raises(UnsupportedError, match=r"Different are: torch: 1.0 there, .* here\. Install the same"):
        reply.outcome(sent)


def test_a_strategy_that_is_not_there_is_named():
    sent = packed(job_of(next(cell for cell in cells_of(["fastv"]) if cell.method == "fastv")))
    lost = replace(sent, parcel=sent.parcel.replace(b"tokentrim_strategies.fastv", b"tokentrim_strategies.fastw"))
    with pytest.raises(UnsupportedError, match=r"strategy of fastv .* be importable on .*fastw"):
        opened(lost)


def test_what_goes_wrong_beside_the_questions_is_a_failure_with_its_cause(monkeypatch):
    def broken(*_, **__):
        raise RuntimeError("no memory")

    monkeypatch.setattr("tokentrim.runs.cells.load_model", broken)
    here = job_of(cells_of(["fastv"])[0])
    outcome = Workplace().attempt(here).outcome(here)
    assert (outcome.result, outcome.cause) == (None, "RuntimeError: no memory")
