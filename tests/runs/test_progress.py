"""What long work says where there is no terminal."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from tokentrim.runs import progress
from tokentrim.runs.progress import Lines, duration


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
