"""The solver: never above the target, never further below than the strategy's own granularity."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest
from hypothesis import given, settings, strategies as st
from pydantic import Field
from torch import Tensor

from tokentrim.config.specs import strategy_from
from tokentrim.contracts.sites import LayerSite
from tokentrim.contracts.strategy import SpatialScorer, Strategy
from tokentrim.counting.forecast import plan
from tokentrim.counting.published import PRESETS
from tokentrim.counting.rounding import keep_count
from tokentrim.counting.schedule import Schedule
from tokentrim.counting.shape import ModelShape
from tokentrim.counting.solve import roundest, solve
from tokentrim.errors import StrategyError

LLAVA = PRESETS["llava-1.5-7b"]
SMALL = ModelShape(12, 64, 4, 4, 16, 128, 100)

MEASURES = {"layer_mean_ratio": "layer_mean_ratio", "kv_ratio": "kv_mean_ratio", "flops_ratio": "flops_ratio"}


def made(spec: Any) -> Strategy:
    return strategy_from(spec).strategy


class Opening(SpatialScorer):
    """Keeps ``limit`` tokens before layer 1: an integer knob."""

    name: ClassVar[str] = "opening"
    budget_knob: ClassVar[str | None] = "limit"
    limit: int = Field(default=5, ge=1)

    def schedule(self, shape: ModelShape, n_visual: int) -> Schedule:
        return Schedule.of({1: min(self.limit, n_visual)})

    def score(self, site: LayerSite) -> Tensor:
        return site.valid.float()


class Half(SpatialScorer):
    """A knob with exclusive ends inside (0, 1)."""

    name: ClassVar[str] = "half"
    budget_knob: ClassVar[str | None] = "share"
    share: float = Field(default=0.5, gt=0.2, lt=0.8)

    def schedule(self, shape: ModelShape, n_visual: int) -> Schedule:
        return Schedule.of({0: keep_count(self.share, n_visual)})

    def score(self, site: LayerSite) -> Tensor:
        return site.valid.float()


class Misnamed(Half):
    """Declares a knob that it does not have."""

    budget_knob: ClassVar[str | None] = "portion"


@settings(max_examples=60, deadline=None)
@given(
    spec=st.sampled_from(["random", "fastv", "pvtp", {"name": "pvtp", "rule": "linear"}, {"name": "fastv", "k": 5}]),
    n_visual=st.integers(1, 300),
    ratio=st.floats(0.01, 1),
    measure=st.sampled_from(["layer_mean_ratio", "flops_ratio"]),
)
def test_realised_is_the_highest_not_above_the_target(spec: Any, n_visual: int, ratio: float, measure: str):
    strategy = made(spec)
    budget = {measure: ratio}
    try:
        solved, realised = solve(strategy, SMALL, n_visual, **budget)
    except StrategyError as error:
        assert "must be at least" in str(error) or "depend on" in str(error)  # noqa: PT017  # one outcome of two
        return
    assert realised <= ratio
    assert realised == getattr(plan(solved, SMALL, n_visual, new_tokens=1).usage, measure)
    # The next setting of the knob that changes anything overshoots.
    knob = solved.knob(n_visual)
    at = round(getattr(solved, knob.name) / float(knob.step))
    higher = [_cost(knob.at(index), n_visual, measure) for index in _around(at, knob.steps)]
    assert all(cost <= realised or cost > ratio for cost in higher)


def _around(index: int, steps: int) -> list[int]:
    """Grid points on both sides, at growing distances."""
    near = [index + sign * 4**power for power in range(10) for sign in (-1, 1)]
    return [other for other in near if 0 <= other <= steps]


def _cost(strategy: Strategy, n_visual: int, measure: str) -> float:
    return getattr(plan(strategy, SMALL, n_visual, new_tokens=1).usage, measure)


@settings(max_examples=15, deadline=None)
@given(
    ratios=st.tuples(st.floats(0.05, 1), st.floats(0.05, 1)).map(sorted),
    spec=st.sampled_from(["st3", "vta", "random"]),
)
def test_more_budget_never_gives_less(ratios: list[float], spec: str):
    outcomes: list[float] = []
    for ratio in ratios:
        try:
            outcomes.append(solve(made(spec), SMALL, 60, kv_ratio=ratio, new_tokens=12)[1])
        except StrategyError:
            outcomes.append(0.0)
    assert outcomes == sorted(outcomes)
    assert all(realised <= ratio for realised, ratio in zip(outcomes, ratios, strict=True))


@pytest.mark.parametrize(
    ("spec", "budget", "parameters"),
    [
        ("random", {"layer_mean_ratio": 0.25}, {"keep_ratio": 0.25}),
        ("fastv", {"layer_mean_ratio": 0.25}, {"keep_ratio": 0.2}),
        ({"name": "pvtp", "stride": 4}, {"layer_mean_ratio": 0.25}, {"prune_ratio": 0.392}),
        ({"name": "pvtp", "stride": 4, "rule": "linear"}, {"layer_mean_ratio": 0.25}, {"prune_ratio": 0.25}),
        ({"name": "st3", "stride": 4}, {"flops_ratio": 0.3}, {"prune_ratio": 0.377}),
        ("random", {"layer_mean_ratio": 1.0}, {"keep_ratio": 1.0}),
    ],
    ids=str,
)
def test_roundest_value_of_a_plateau_is_chosen(spec: Any, budget: Any, parameters: dict[str, float]):
    solved, _ = solve(made(spec), LLAVA, 576, **budget)
    assert {name: getattr(solved, name) for name in parameters} == parameters


def test_other_parameters_stay():
    solved, _ = solve(made({"name": "st3", "start": 3, "horizon": 20}), LLAVA, 576, layer_mean_ratio=0.3)
    assert (solved.spec()["start"], solved.spec()["horizon"]) == (3, 20)


def test_a_ratio_takes_the_place_of_a_fixed_count():
    solved, realised = solve(made({"name": "random", "keep_count": 10}), LLAVA, 576, layer_mean_ratio=0.5)
    assert solved == made({"name": "random", "keep_ratio": 0.5})
    assert realised == 0.5


def test_integer_knob():
    solved, realised = solve(Opening(), SMALL, 60, layer_mean_ratio=0.5)
    assert isinstance(solved, Opening)
    assert solved.limit == 27  # (60 + 11 * 27) / 12 = 29.75; 28 would give 30.67
    assert realised == pytest.approx(29.75 / 60)


def test_exclusive_ends_are_never_tried():
    solved, realised = solve(Half(), SMALL, 100, layer_mean_ratio=1.0)
    assert isinstance(solved, Half)
    assert realised == 0.79  # the most that a share below 0.8 keeps of 100
    with pytest.raises(StrategyError, match=r"must be at least 0\.2000"):
        solve(Half(), SMALL, 100, layer_mean_ratio=0.1)


def test_unreachable_target_names_the_least_reachable_value():
    message = r"layer_mean_ratio of strategy 'fastv' must be at least 0\.0625, .* got 0\.05\."
    with pytest.raises(StrategyError, match=message):
        solve(made("fastv"), LLAVA, 576, layer_mean_ratio=0.05)


def test_target_above_reach_gives_the_most():
    annealed = made({"spatial": "random", "temporal": "vta"})
    _, realised = solve(annealed, SMALL, 60, kv_ratio=0.9)
    assert realised == plan(made("vta"), SMALL, 60).usage.kv_mean_ratio


def test_composition_turns_the_spatial_knob():
    solved, realised = solve(made({"spatial": "fastv", "temporal": "vta"}), LLAVA, 576, layer_mean_ratio=0.25)
    assert solved == made({"spatial": {"name": "fastv", "keep_ratio": 0.2}, "temporal": "vta"})
    assert realised == pytest.approx(0.25, abs=1e-3)


def test_composition_without_spatial_knob_turns_the_temporal_one():
    withdrawn = made({"spatial": {"name": "text-only", "k": 6}, "temporal": "vta"})
    solved, realised = solve(withdrawn, SMALL, 60, kv_ratio=0.4)
    assert solved.spec()["temporal"]["floor"] > 0
    assert realised <= 0.4


def test_composition_of_two_knobs_says_which_to_set():
    both = made({"spatial": [{"name": "random"}, {"name": "fastv"}]})
    with pytest.raises(StrategyError, match=r"set random\.keep_ratio and fastv\.keep_ratio by hand"):
        solve(both, LLAVA, 576, layer_mean_ratio=0.25)


@pytest.mark.parametrize(
    ("spec", "budget", "message"),
    [
        ("none", {"kv_ratio": 0.5}, "declare a budget_knob"),
        ("text-only", {"kv_ratio": 0.5}, "declare a budget_knob"),
        ("vta", {"layer_mean_ratio": 0.5}, "depend on its budget knob 'floor'"),
        ("random", {}, "exactly one of"),
        ("random", {"kv_ratio": 0.5, "flops_ratio": 0.5}, "exactly one of"),
        ("random", {"kv_ratio": 1.5}, r"lie in \[0, 1\]"),
    ],
    ids=str,
)
def test_impossible_requests_are_refused(spec: str, budget: Any, message: str):
    with pytest.raises(StrategyError, match=message):
        solve(made(spec), LLAVA, 576, **budget)


def test_knob_that_is_no_parameter_is_refused():
    with pytest.raises(StrategyError, match="name one of its parameters"):
        solve(Misnamed(), LLAVA, 576, kv_ratio=0.5)


def test_prompt_without_visual_tokens_needs_no_solving():
    assert solve(made("fastv"), LLAVA, 0, layer_mean_ratio=0.25) == (made("fastv"), 1.0)


def test_strategies_offer_the_solver_themselves():
    solved, realised = made("random").at_budget(LLAVA, 576, layer_mean_ratio=0.25)
    assert (solved, realised) == (made({"name": "random", "keep_ratio": 0.25}), 0.25)


def test_roundest_looks_from_few_decimals_to_many():
    knob = made("random").knob(576)
    assert knob.value(roundest(knob, 199_653, 201_388)) == 0.2
    assert knob.value(roundest(knob, 263_800, 263_900)) == 0.2638
    assert knob.value(roundest(knob, 0, 10)) == 0.0
    assert knob.value(roundest(knob, 123_456, 123_456)) == 0.123456
