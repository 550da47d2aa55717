"""``vta`` against the formula, in exact and in high-precision arithmetic."""

import math
from decimal import Decimal, localcontext
from fractions import Fraction
from typing import Literal

import pytest
from hypothesis import given, strategies as st

from tests.strategies.sites_factory import attention, model_shape, step_site
from tokentrim.contracts.sites import Need
from tokentrim_strategies.vta import VTA

SHAPE = model_shape()
Attenuation = Literal["linear", "cosine", "exponential"]
ATTENUATIONS: list[Attenuation] = ["linear", "cosine", "exponential"]


def count(strategy: VTA, step: int, n: int) -> int:
    return strategy.count(step, 0, n, SHAPE)


@pytest.mark.parametrize("attenuation", ATTENUATIONS)
def test_gamma_of_zero_keeps_everything(attenuation: Attenuation):
    for n in (0, 1, 2, 576, 2880, 99_991):
        assert count(VTA(attenuation=attenuation), 0, n) == n


@pytest.mark.parametrize("horizon", [2, 4, 6, 10, 50, 64, 100, 128, 998, 4096])
@pytest.mark.parametrize("attenuation", ["linear", "cosine"])
def test_half_of_the_horizon_keeps_exactly_half(attenuation: Attenuation, horizon: int):
    strategy = VTA(attenuation=attenuation, horizon=horizon)
    for n in (*range(40), 576, 577, 2880, 99_990):
        assert count(strategy, horizon // 2, n) == -(-n // 2)


@pytest.mark.parametrize("attenuation", ["linear", "cosine"])
def test_horizon_keeps_nothing_but_the_floor(attenuation: Attenuation):
    for step in (64, 65, 1000):
        assert count(VTA(attenuation=attenuation), step, 576) == 0
        assert count(VTA(attenuation=attenuation, floor=0.1), step, 576) == 57


@pytest.mark.parametrize("attenuation", ATTENUATIONS)
def test_nothing_leaves_at_the_first_step_of_a_long_answer(attenuation: Attenuation):
    for n in (1, 7, 27, 31):
        assert count(VTA(attenuation=attenuation, horizon=192), 1, n) == n


def test_an_answer_of_known_length_is_its_horizon():
    assert VTA().for_answer(200) == VTA(horizon=200)
    assert VTA(horizon=9).for_answer(200) == VTA(horizon=9)
    assert [count(VTA(), step, 576) for step in (1, 63)] == [count(VTA(horizon=64), step, 576) for step in (1, 63)]


@given(third=st.integers(1, 300), n=st.integers(0, 20_000))
def test_cosine_at_thirds_of_the_horizon_is_exact(third: int, n: int):
    strategy = VTA(attenuation="cosine", horizon=3 * third)
    assert count(strategy, third, n) == -(-3 * n // 4)
    assert count(strategy, 2 * third, n) == -(-n // 4)


@given(step=st.integers(0, 300), horizon=st.integers(1, 200), n=st.integers(0, 20_000))
def test_linear_equals_exact_fractions(step: int, horizon: int, n: int):
    expected = math.ceil(n * max(Fraction(0), 1 - Fraction(step, horizon)))
    assert count(VTA(attenuation="linear", horizon=horizon), step, n) == expected


@given(step=st.integers(0, 300), horizon=st.integers(2, 200), n=st.integers(0, 20_000))
def test_exponential_equals_high_precision(step: int, horizon: int, n: int):
    with localcontext() as context:
        context.prec = 50
        expected = math.ceil(n * (Decimal(-3 * step) / horizon).exp())
    assert count(VTA(attenuation="exponential", horizon=horizon), step, n) == expected


@given(
    attenuation=st.sampled_from(ATTENUATIONS),
    horizon=st.integers(1, 200),
    percent=st.integers(0, 100),
    every=st.integers(1, 20),
    n=st.integers(0, 3000),
)
def test_counts_never_rise_and_respect_the_floor(
    attenuation: Attenuation, horizon: int, percent: int, every: int, n: int
):
    strategy = VTA(attenuation=attenuation, horizon=horizon, floor=percent / 100, every=every)
    counts = [count(strategy, step, n) for step in range(2 * horizon + 2)]
    assert counts == sorted(counts, reverse=True)
    assert counts[0] == n
    assert counts[-1] >= n * percent // 100
    formula = VTA(attenuation=attenuation, horizon=horizon, floor=percent / 100)
    for step, chunked in enumerate(counts):  # a chunk holds the formula's count of its first step
        assert chunked == count(formula, step // every * every, n)


def test_every_1_is_the_formula():
    strategy = VTA()
    for step in range(70):
        gamma = (1 + math.cos(math.pi * min(step, 64) / 64)) / 2
        assert count(strategy, step, 575) == math.ceil(575 * gamma)  # no exact points besides 0 and 64 for odd n


@pytest.mark.parametrize(
    ("attenuation", "mean", "end"), [("linear", 27.5, 17), ("cosine", 27.5, 17), ("exponential", 22, 18)]
)
def test_share_of_the_cache_in_the_cost_table(attenuation: Attenuation, mean: float, end: float):
    from tokentrim_strategies.pvtp import PVTP

    strategy = VTA(attenuation=attenuation)
    layers = PVTP(stride=4, prune_ratio=0.3).schedule(SHAPE, 576).per_layer(32, 576)
    shares = [
        100
        * sum(strategy.count(step, layer, n, SHAPE) + 55 + step for layer, n in enumerate(layers))
        / sum(576 + 55 + step for _ in layers)
        for step in range(65)
    ]
    assert sum(shares[:64]) / 64 == pytest.approx(mean, abs=1)
    assert shares[64] == pytest.approx(end, abs=1)


Ranking = Literal["current", "previous", "block", "frozen", "accumulated"]
RANKINGS: list[tuple[Ranking, Need, list[int]]] = [
    ("current", Need.LAST_ROW, [0, 1, 2, 3, 4, 5, 6]),
    ("previous", Need.LAST_ROW, [0, 0, 1, 2, 3, 4, 5]),
    ("block", Need.LAST_ROW, [0, 0, 1, 1, 1, 4, 4]),
    ("frozen", Need.PROMPT_ROW, [0, 1, 2, 3, 4, 5, 6]),
    ("accumulated", Need.ACCUMULATED, [0, 1, 2, 3, 4, 5, 6]),
]


@pytest.mark.parametrize(("ranking", "need", "layers"), RANKINGS)
def test_whose_row_ranks(ranking: Ranking, need: Need, layers: list[int]):
    strategy = VTA(ranking=ranking, start=2, stride=3)
    assert [strategy.row_layer(layer, model_shape(7)) for layer in range(7)] == layers


@pytest.mark.parametrize(("ranking", "need", "layers"), RANKINGS)
def test_score_is_the_mean_over_heads(ranking: Ranking, need: Need, layers: list[int]):
    rows = attention(1, 3, 5)
    strategy = VTA(ranking=ranking)
    assert strategy.needed() == {need} <= strategy.needs
    score = strategy.score(step_site((5,), {need: rows}))
    expected = [sum(rows[0, head, token].item() for head in range(3)) / 3 for token in range(5)]
    assert score[0].tolist() == pytest.approx(expected, abs=1e-15)
