"""The executor ``local`` with several processes: the same results as from one, whatever happens to a process."""

import pytest

from tests import warm
from tests.executors.small import CELLS, CONFIG, contents, heads
from tokentrim.compare import run
from tokentrim.executors import processes


@pytest.fixture
def warmed(monkeypatch):
    """Processes that were to begin with nothing begin with torch imported."""
    monkeypatch.setitem(processes.multiprocessing.context._concrete_contexts, "spawn", warm.Spawning())


class Told:
    """Remembers what a run says."""

    def __init__(self):
        self.said = []

    def start(self, total, finished):
        self.said.append((total, finished))

    def step(self, text):
        pass

    def say(self, text):
        self.said.append(text)


def test_times_taken_alone_are_reported(alone):
    assert len(heads(alone)) == CELLS
    assert all(head["timed_alone"] for head in heads(alone))


@pytest.mark.slow
def test_two_processes_give_the_same_results_though_one_is_killed(shaky, alone, warmed, tmp_path):
    shaky.order("kill")
    told = Told()
    summary = run(CONFIG, tmp_path, executor={"name": "local", "workers": 2}, progress=told, formats=["csv"])
    assert summary.failures == 0
    assert contents(tmp_path) == contents(alone)
    lost = [text for text in told.said[1:] if text.startswith("lost: ")]
    assert len(lost) == 1
    assert "on shaky" in lost[0]
    assert "ended by SIGKILL; it is run again, attempt 2 of 3" in lost[0]
    assert not any(head["timed_alone"] for head in heads(tmp_path))
    assert all(row["prefill_seconds"] is None for row in [*summary.cells, *summary.overall])
    assert any("times of cells are left out" in note for note in summary.data["notes"])
    assert processes.multiprocessing.active_children() == []


@pytest.mark.slow
def test_a_cell_that_kills_every_process_fails_with_its_cause_and_can_be_run_again(shaky, alone, warmed, tmp_path):
    shaky.order("doom")
    # The standard library's pool is the documentation's example of an executor; here it makes the cells that live.
    one = {**CONFIG, "tasks": ["shaky"], "samples": 6}
    once = {"name": "local", "workers": 2, "max_retries": 0}
    summary = run(one, tmp_path, executor=once, progress=Told(), formats=["csv"])
    assert summary.failures == len(summary.cells) == 2
    assert "its worker died 1 times, the last one so: process" in summary.first_cause
    assert all(row["n"] == 0 and row["accuracy"] is None for row in summary.cells)
    shaky.order()
    again = run(one, tmp_path, executor={"name": "pool", "workers": 1}, formats=["csv"])
    assert again.failures == 0
    assert all(row["n"] == 6 for row in again.cells)


def test_every_process_has_a_gpu_or_its_share_of_the_cores(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(processes, "cores", lambda: 8)
    monkeypatch.setattr(processes, "gpus", list)
    crew = processes.Crew(3, 0, print)
    assert [crew._environment(number) for number in range(3)] == [{"OMP_NUM_THREADS": "2"}] * 3
    monkeypatch.setattr(processes, "gpus", lambda: ["4", "6"])
    crew = processes.Crew(3, 0, print)
    assert [crew._environment(number)["CUDA_VISIBLE_DEVICES"] for number in range(3)] == ["4", "6", "4"]


def test_the_gpus_are_those_that_this_process_may_use(monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3, 5")
    assert processes.gpus() == ["3", "5"]
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert processes.gpus() == ["0", "1"]
