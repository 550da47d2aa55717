"""What long work says where there is no terminal."""

from __future__ import annotations

import io

import pytest
from rich.console import Console
from typer.testing import CliRunner

from tokentrim import progress
from tokentrim.cli import app
from tokentrim.progress import Lines, Silent, duration


class Told(Silent):
    """Remembers what it is told: how much there is to do, and what was done."""

    def __init__(self):
        self.totals, self.steps, self.said = [], [], []

    def start(self, total, finished=0):
        self.totals.append(total)

    def step(self, text):
        self.steps.append(text)

    def say(self, text):
        self.said.append(text)


@pytest.fixture
def clock(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_lines_say_what_is_left(clock):
    out = io.StringIO()
    lines = Lines(Console(file=out, width=200), "runs")
    lines.start(40)
    for number in range(40):
        clock[0] += 31 if number == 1 else 10
        lines.step(f"run {number}")
    said = out.getvalue().splitlines()
    assert said[0] == "40 runs"
    assert said[1] == "2/40 runs after 41 s, about 13 min left: run 1"  # nothing was said for half a minute
    assert said[2] == "4/40 runs after 61 s, about 9 min left: run 3"  # a tenth is done
    assert said[-1] == "40/40 runs after 7 min: run 39"


def test_what_was_found_says_nothing_of_the_speed(clock):
    out = io.StringIO()
    lines = Lines(Console(file=out, width=200))
    lines.start(100, 90)
    clock[0] = 50.0
    lines.step("one")
    assert out.getvalue().splitlines() == [
        "100 cells, 90 of them finished before",
        "91/100 cells after 50 s, about 8 min left: one",
    ]


@pytest.mark.parametrize(("seconds", "said"), [(0.4, "0 s"), (119, "119 s"), (600, "10 min"), (9000, "2.5 h")])
def test_durations(seconds, said):
    assert duration(seconds) == said


# ---------------------------------------------------------------------- what takes long tells


def tiny(**more):
    from tokentrim.bench import BenchOptions

    return BenchOptions(
        geometry="tiny", strategies=("random",), prompt_tokens=6, new_tokens=2, repeats=1, device="cpu", **more
    )


def test_throughput_and_profile_tell_every_run():
    from tokentrim.bench.profile import run_profile
    from tokentrim.bench.throughput import run_throughput

    told = Told()
    rows = run_throughput(tiny(), 2**20, told).rows
    assert told.totals == [4, 2]
    assert len(told.steps) == 6
    assert f"the largest batch of untouched: {rows[0].batch}" in told.steps
    assert any(text.startswith("untouched: a batch of 2 takes ") for text in told.said)
    told = Told()
    run_profile(tiny(), told)
    assert (told.totals, len(told.steps)) == ([3], 3)


def test_a_suite_tells_which_bench_runs_and_what_is_left(tmp_path):
    from tokentrim.bench.suite import run_suite

    text = """
settings:
  - {geometry: [tiny], strategies: [random], images: [1], batch: [1, 2], new_tokens: [2], repeats: 1, memory: false}
"""
    told = Told()
    run_suite(text, tmp_path, progress=told)
    assert told.said[0].startswith("bench 1 of 2: tokentrim bench --geometry tiny")
    assert told.totals == [5, 5]
    assert any(text.startswith("bench 2 of 2, about ") for text in told.said)
    told = Told()
    run_suite(text, tmp_path, progress=told)
    assert not told.said + told.steps


def test_the_doctor_tells_every_check_of_a_model():
    from tokentrim.cli.checkup import check_model
    from tokentrim.selftest.checks import CHECKS

    told = Told()
    found = check_model("testbed-plain", told)
    assert told.totals == [1 + len(CHECKS)] == [len(told.steps)]
    assert {name for name, *_ in CHECKS} <= {check["name"] for check in found["checks"]}


def test_the_contract_suite_tells_every_check(capsys, monkeypatch):
    from tokentrim.testing import __main__ as command, doors

    def few(subject, families=None):
        found = list(checks(subject, families=families))
        return iter(found[:10])

    checks = doors.checks_of
    monkeypatch.setattr(doors, "checks_of", few)
    assert command.main(["uniform", "--family", "llava"]) == 0
    said = capsys.readouterr()
    assert said.err.splitlines()[0] == "10 checks"
    assert "10/10 checks after" in said.err
    assert "checks after" not in said.out


def test_explain_tells_model_answers_and_pictures(tmp_path):
    words = ["explain", "--task", "where", "--strategy", "fastv,random", "--model", "testbed-plain", "--no-baseline",
             "--max-new-tokens", "2", "--out", str(tmp_path / "out")]  # fmt: skip
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.stderr
    lines = [line for line in result.stderr.splitlines() if "steps" in line]
    assert lines[0] == "4 steps"
    assert [line.rpartition(": ")[2] for line in lines[1:]] == ["model loaded", "fastv", "random", "pictures drawn"]
