"""What is kept: counts, plans that are met exactly, and strategies that must agree with each other.

Nested sets, text that stays and the plan of every strategy are held by the contract: tests/testing/test_contract.py.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.engine.cases import FIRST, OTHERS, RENUMBERED, SPECS, deviation, generate, merges, trimmed
from tests.models import alone, prompt, tiny_llava
from tokentrim.config.specs import strategy_from
from tokentrim.counting.costs import mean_ratios
from tokentrim.counting.forecast import is_static, plan
from tokentrim.engine.tokens.trace import Trace
from tokentrim_strategies.replay import Replay

_model = lru_cache(maxsize=8)(tiny_llava)
STEPS = 9
FADING = [name for name in OTHERS if strategy_from(SPECS[name]).strategy.temporal_part is not None]
"""Further configurations of strategies that act at decode steps: a trace records each step."""
_PLANNED = ["random-boundary=0", "fastv-query=all", "text-only-k=0", "vta", "st3", "composition", *FADING]
"""A cut at the input and inside, nothing left, and what decode steps let go."""


def _subset(smaller: torch.Tensor, larger: torch.Tensor) -> bool:
    return bool(torch.isin(smaller, larger).all())


@pytest.mark.parametrize("count", [0, 1, 2, 15, 16])
@pytest.mark.parametrize("boundary", [0, 1, 2, 3, 5])
def test_counts_are_exact_at_every_boundary(boundary: int, count: int) -> None:
    model = _model(side=4)
    inputs = prompt(model, [3, "image", 2])
    for spec in (
        {"name": "uniform", "keep_count": count, "boundary": boundary},
        {"name": "fastv", "keep_count": count, "k": max(boundary, 1)},
    ):
        with trimmed(model, spec, inputs) as session:
            model(**inputs)
        cut = spec.get("boundary", spec.get("k"))
        expected = [16] * cut + [count] * (6 - cut)
        assert [len(session.trace.kept(layer)) for layer in range(6)] == expected


@pytest.mark.parametrize("name", _PLANNED)
def test_the_plan_is_met_exactly(name: str) -> None:
    model = _model(side=4)
    strategy = strategy_from(SPECS[name]).strategy
    if not is_static(strategy):
        pytest.skip("its counts depend on the data")
    inputs = prompt(model, [3, "image", 5], [9], [2, "image", 4, "image", 7])
    with trimmed(model, SPECS[name], inputs) as session:
        generate(model, inputs, STEPS)
        report, shape = session.report(), session.layout.shape
    plans = [plan(strategy, shape, *sizes, STEPS).usage for sizes in ((16, 8), (32, 13))]
    layers = [sum(counts) / 2 for counts in zip(*(usage.layer_tokens for usage in plans), strict=True)]
    assert report.tokens_per_layer == layers
    found = report.to_dict()
    for key, value in mean_ratios(plans).items():
        assert found[key] == value, key
    assert report.kv_peak_bytes == sum(usage.kv_bytes(0) for usage in plans) / 2
    assert report.kv_mean_bytes == sum(usage.kv_bytes_mean for usage in plans) / 2
    assert report.kv_end_bytes == sum(usage.kv_bytes(STEPS - 1) for usage in plans) / 2
    assert report.rows == 3
    assert report.decode_steps == STEPS - 1
    assert any("1 of 3 samples have no image" in note for note in report.notes)
    emptied = sum(0 in usage.layer_tokens for usage in plans)
    assert any(f"{emptied} of 2 samples had no visual token" in note for note in report.notes) == bool(emptied)
    assert session.strategy.label() in str(report)


@pytest.mark.parametrize("k", [1, 2, 5])
def test_text_only_is_fastv_with_nothing_kept(k: int) -> None:
    model = _model(side=4)
    inputs = prompt(model, [3, "image", 5], [2, "image", 9])
    with trimmed(model, {"name": "text-only", "k": k}, inputs):
        expected = generate(model, inputs, 5)
    with trimmed(model, {"name": "fastv", "k": k, "keep_count": 0}, inputs):
        found = generate(model, inputs, 5)
    assert torch.equal(found[0], expected[0])
    assert torch.equal(found[1], expected[1])


@pytest.mark.parametrize(
    ("name", "positions"),
    [*((name, "keep") for name in [*FIRST, *FADING]), ("st3", "renumber"), ("composition", "renumber")],
)
def test_replaying_a_trace_is_the_run_itself(name: str, positions: Any, tmp_path: Path) -> None:
    specs = SPECS if positions == "keep" else RENUMBERED
    if merges(strategy_from(specs[name]).strategy):
        pytest.skip("merging is not recorded")
    model = _model(side=4)
    inputs = prompt(model, [3, "image", 5], [9], [2, "image", 4, "image", 7])
    with trimmed(model, specs[name], inputs) as session:
        ids, logits = generate(model, inputs, STEPS)
        trace = session.trace
    trace.save(tmp_path / "run.safetensors")
    assert Trace.load(tmp_path / "run.safetensors").rows_equal(trace)
    spec = {"name": "replay", "file": str(tmp_path / "run.safetensors"), "positions": positions}
    for replay in (Replay.of(trace, positions), spec) if name in ("st3", "composition") else (spec,):
        with trimmed(model, replay, inputs) as session:
            found = generate(model, inputs, STEPS)
            assert session.trace.rows_equal(trace)
        assert torch.equal(found[0], ids)
        assert deviation(found[1], logits) < 1e-5  # a strategy that read the row attends with it: another order of sums


def test_the_last_row_and_all_rows_choose_differently() -> None:
    model = _model()
    inputs = prompt(model, [3, "image", 5])
    kept: list[torch.Tensor] = []
    for query in ("last", "all"):
        with trimmed(model, {"name": "fastv", "query": query, "keep_ratio": 0.25}, inputs) as session:
            model(**inputs)
        kept.append(session.trace.kept(2))
    assert not torch.equal(kept[0], kept[1])


def test_a_composition_does_what_its_parts_do_in_turn() -> None:
    """Random at the input, then FastV among what is left: its counts refer to the original tokens."""
    model = _model(side=4)
    inputs = prompt(model, [3, "image", 5])
    spatial = SPECS["composition"]["spatial"]
    with trimmed(model, SPECS["composition"], inputs) as session:
        ids, _ = generate(model, inputs, 6)
        both = session.trace
    with trimmed(model, spatial[0], inputs) as session:
        model(**inputs)
        first = session.trace
    assert torch.equal(both.kept(0), first.kept(0))
    assert len(both.kept(2)) == 6
    assert _subset(both.kept(2), both.kept(0))
    assert len(both.cached(3, 5)) < len(both.kept(3))
    assert ids.shape == (1, 6)


def test_two_parts_may_act_at_one_boundary() -> None:
    model = _model(side=4)
    inputs = prompt(model, [3, "image", 5], [1, "image", 5, "image", 4])
    spec = {"spatial": [{"name": "random", "keep_ratio": 0.5, "boundary": 2}, {"name": "fastv", "keep_ratio": 0.25}]}
    with trimmed(model, spec, inputs) as session:
        _, logits = generate(model, inputs, 4)
        trace = session.trace
    assert [len(trace.kept(2, row)) for row in (0, 1)] == [4, 8]
    single = alone(inputs, 0, 16)
    with trimmed(model, spec, single):
        _, expected = generate(model, single, 4)
    assert deviation(logits[0], expected[0]) < 1e-4
