"""P-Sigmoid: the budget to the token, curves that fall, and a search that repeats itself."""

import builtins
import math
from fractions import Fraction

import pytest
from hypothesis import given, strategies as st

from tokentrim.calibrate.psigmoid import Depth, apportion, centre_of, counts_of, psigmoid, sigmoid
from tokentrim.config.schedule_file import rates_of
from tokentrim.counting.rounding import exact, keep_count
from tokentrim.errors import ConfigError, UnsupportedError


@given(
    layers=st.integers(2, 48),
    first=st.integers(1, 5),
    n=st.integers(1, 3000),
    share=st.integers(0, 1000),
    low=st.floats(0, 1),
    high=st.floats(0, 1),
    width=st.floats(0.05, 48),
)
def test_every_curve_meets_the_budget_exactly_and_never_rises(layers, first, n, share, low, high, width):
    first = min(first, layers - 1)
    budget = float(round(Fraction(first, layers) + (1 - Fraction(first, layers)) * Fraction(share, 1000), 4))
    total = math.floor(exact(budget) * layers * n)
    if total < first * n:
        budget, total = first / layers + 1e-3, math.floor(exact(first / layers + 1e-3) * layers * n)
    depth = Depth.at(budget, layers, first, n)
    lo, hi = low * depth.mean_rate, depth.mean_rate + high * (1 - depth.mean_rate)
    counts, _ = counts_of(depth, lo, hi, width)
    assert len(counts) == layers
    assert sum(counts) == total
    assert counts[:first] == (n,) * first
    assert list(counts) == sorted(counts, reverse=True)
    assert counts[-1] >= 0


@given(
    layers=st.integers(2, 40),
    n=st.integers(1, 3000),
    shape=st.tuples(st.floats(0, 1), st.floats(0, 1), st.floats(0.05, 40)),
)
def test_rates_give_the_counts_back(layers, n, shape):
    depth = Depth(layers, 1, n, n + (layers - 1) * n // 3)
    counts, _ = counts_of(
        depth, shape[0] * depth.mean_rate, depth.mean_rate + shape[1] * (1 - depth.mean_rate), shape[2]
    )
    rates, kept, found = rates_of(counts, n), n, []
    for layer in range(layers):
        kept = keep_count(rates[layer], n) if layer in rates else kept
        found.append(kept)
    assert tuple(found) == counts


def test_counts_follow_the_formula_to_one_token():
    depth = Depth.at(0.4, layers=12, first=2, n_visual=100)
    lo, hi, width = 0.05, 0.9, 1.5
    counts, centre = counts_of(depth, lo, hi, width)
    for layer in range(2, 12):
        wanted = 100 * (lo + (hi - lo) / (1 + math.exp((layer - centre) / width)))
        assert abs(counts[layer] - wanted) <= 1


def test_the_centre_meets_the_mean():
    depth = Depth.at(0.4, layers=12, first=2, n_visual=1000)
    for width in (0.05, 1.0, 12.0):
        centre = centre_of(depth, 0.1, 0.8, width)
        mean = sum(sigmoid(layer, 0.1, 0.8, centre, width) for layer in range(2, 12)) / 10
        assert mean == pytest.approx(depth.mean_rate, abs=1e-6 if width > 0.5 else 0.07)  # a step has few values


@given(
    data=st.data(),
    size=st.integers(1, 12),
    most=st.integers(0, 50),
)
def test_apportioning_is_exact_whatever_is_wanted(data, size, most):
    wanted = sorted((data.draw(st.floats(0, most)) for _ in range(size)), reverse=True)
    total = data.draw(st.integers(0, size * most))
    counts = apportion(wanted, total, most)
    assert sum(counts) == total
    assert list(counts) == sorted(counts, reverse=True)
    assert all(0 <= count <= most for count in counts)


def test_apportioning_gives_what_is_over_to_the_largest_remainders():
    assert apportion([5.2, 3.7, 3.1], 12, 10) == (5, 4, 3)
    assert apportion([2.5, 2.5, 2.5], 8, 10) == (3, 3, 2)


def test_a_budget_below_the_first_layers_is_refused():
    with pytest.raises(ConfigError, match=r"at least 0.25: 3 of 12 layers.*got 0.2"):
        Depth.at(0.2, layers=12, first=3, n_visual=100)


# ---------------------------------------------------------------------- the search

DEPTH = Depth.at(0.4, layers=12, first=1, n_visual=100)


def quality(rates):
    """Best where the counts fall in one go at boundary 5; a loss for every token elsewhere."""
    kept, loss = 1.0, 0.0
    for layer in range(12):
        kept = rates.get(layer, kept)
        loss += abs(kept - (1.0 if layer < 4 else 0.1))
    return -loss


def test_the_search_finds_a_better_curve_than_the_plain_ones():
    found = psigmoid(quality, DEPTH, trials=40, seed=0)
    best = max(entry["quality"] for entry in found.trace)
    assert quality(found.rates) == best
    assert best > max(found.trace[0]["quality"], found.trace[1]["quality"]) + 0.2
    assert len(found.trace) == 40


def test_the_same_seed_searches_the_same_way():
    first, again, other = (psigmoid(quality, DEPTH, trials=15, seed=seed) for seed in (3, 3, 4))
    assert (first.rates, first.trace) == (again.rates, again.trace)
    assert first.trace != other.trace


def test_the_plain_curves_come_first():
    asked = []
    psigmoid(lambda rates: asked.append(rates) or 0.0, DEPTH, trials=2, seed=0)
    flat, step = asked
    assert {boundary for boundary, rate in flat.items() if rate > 0.35} <= {1}
    assert step == {4: 0.8, 5: 0.0}  # 480 tokens: four whole layers, and the rest


def test_equal_curves_are_asked_once():
    asked = []
    depth = Depth(3, 1, 2, 4)
    psigmoid(lambda rates: asked.append(tuple(rates.items())) or 0.0, depth, trials=30, seed=0)
    assert len(asked) == len(set(asked)) < 30


def test_a_missing_optuna_says_how_to_get_it(monkeypatch):
    real = builtins.__import__

    def without(name, *rest, **more):
        if name == "optuna":
            raise ImportError(name)
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(UnsupportedError, match=r"pip install 'tokentrim-vlm\[calibrate\]'"):
        psigmoid(quality, DEPTH, trials=2, seed=0)
