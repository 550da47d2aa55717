"""The largest batch that fits, by arithmetic; and one real run, small."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
import torch
from typer.testing import CliRunner

from tests.bench.small import SMALL
from tokentrim.bench.throughput import largest_batch
from tokentrim.cli import app
from tokentrim.errors import ConfigError


def _linear(fixed: int, row: int, extra: int = 0) -> Callable[[int], int]:
    return lambda batch: fixed + row * batch + (extra if batch > 2 else 0)


@pytest.mark.parametrize(
    ("budget", "peak", "expected"),
    [(100, _linear(10, 30), 3), (40, _linear(10, 30), 1), (70, _linear(10, 30), 2), (100, _linear(10, 10, 25), 6)],
)
def test_the_largest_batch_fits_and_one_more_does_not(budget: int, peak: Callable[[int], int], expected: int) -> None:
    batch, held = largest_batch(budget, peak, "x")
    assert (batch, held) == (expected, peak(expected))
    assert held <= budget < peak(batch + 1)


def test_no_row_fits() -> None:
    with pytest.raises(ConfigError, match="hold one row of fastv"):
        largest_batch(5, _linear(10, 30), "fastv")


def test_what_the_device_has_no_memory_for_does_not_fit() -> None:
    def peak(batch: int) -> int:
        if batch > 5:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return batch

    assert largest_batch(100, peak, "x") == (5, 5)


@pytest.mark.parametrize("name", [SMALL[0], "tiny-qwen"])  # tests/bench/test_suite.py has LLaVA-NeXT's
def test_every_strategy_runs_at_what_fits(name: str) -> None:
    words = (
        f"bench --geometry {name} --strategies fastv --new-tokens 3 --prompt-tokens 6 --repeats 1 --throughput 0.0004"
    )
    result = CliRunner().invoke(app, [*words.split(), "--json", "--device", "cpu"])
    assert result.exit_code == 0, result.output
    rows = json.loads(result.stdout)["rows"]
    assert rows[0]["strategy"] == "untouched"
    assert rows[0]["ratio"] == 1
    assert [row["strategy"][:5] for row in rows] == ["untou", "fastv"]
    assert all(0 < row["peak_bytes"] <= 0.0004 * 2**30 for row in rows)
    if name == SMALL[0]:
        result = CliRunner().invoke(app, [*words.split(), "--device", "cpu"])
        assert "largest batch" in result.stdout
