"""Intervals and paired tests against values worked out by hand."""

import math

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from tokentrim.compare.stats import (
    adjusted,
    agreement,
    bootstrap,
    crossed,
    estimate,
    mcnemar,
    paired_p,
    seeds_estimate,
    sign_flip,
    wilson,
)

shares = st.floats(0, 1, allow_nan=False)


def test_wilson_by_its_formula():
    found = wilson(9, 10)
    z, n, p = 1.959964, 10, 0.9
    middle = (p + z * z / (2 * n)) / (1 + z * z / n)
    reach = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    assert found.mean == 0.9
    assert found.low == pytest.approx(middle - reach, abs=1e-6)
    assert found.high == pytest.approx(middle + reach, abs=1e-6)


def test_wilson_has_a_width_at_the_ends():
    assert wilson(0, 20).low == 0.0
    assert wilson(0, 20).high == pytest.approx(0.1611, abs=1e-3)
    assert wilson(20, 20).low == pytest.approx(1 - 0.1611, abs=1e-3)


@pytest.mark.parametrize(
    ("gained", "lost", "p"),
    [(0, 0, 1.0), (3, 0, 0.25), (1, 1, 1.0), (8, 2, 0.109375), (10, 0, 2 / 1024)],
)
def test_mcnemar_is_the_binomial_test_of_the_discordant_pairs(gained, lost, p):
    mine = [1.0] * gained + [0.0] * lost + [1.0, 0.0]
    theirs = [0.0] * gained + [1.0] * lost + [1.0, 0.0]
    assert mcnemar(mine, theirs) == pytest.approx(p)


@pytest.mark.parametrize(
    ("mine", "theirs", "p"),
    [
        ([0.5, 0.6, 0.7], [0.5, 0.6, 0.7], 1.0),
        ([0.5], [0.1], 1.0),
        ([0.5, 0.6, 0.7], [0.1, 0.1, 0.1], 2 / 8),
        ([0.9, 0.8, 0.7, 0.2], [0.1, 0.1, 0.1, 0.3], 4 / 16),
        ([0.5, 0.2], [0.2, 0.5], 1.0),
    ],
)
def test_sign_flip_counts_all_sign_patterns(mine, theirs, p):
    assert sign_flip(mine, theirs) == pytest.approx(p)


def test_sign_flip_sees_a_clear_difference_and_repeats_itself():
    mine, theirs = [0.9 - 0.001 * i for i in range(50)], [0.5 + 0.002 * i for i in range(50)]
    assert sign_flip(mine, theirs) == sign_flip(mine, theirs) < 0.001


@settings(max_examples=30, deadline=None)
@given(st.lists(shares, min_size=1, max_size=40))
def test_the_bootstrap_interval_holds_its_mean(scores):
    found = bootstrap([scores])
    assert min(scores) - 1e-9 <= found.low <= found.mean <= found.high <= max(scores) + 1e-9


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=40))
def test_paired_tests_do_not_depend_on_who_is_first(pairs):
    mine, theirs = [float(a) for a, _ in pairs], [float(b) for _, b in pairs]
    for metric in ("exact", "f1"):
        there = paired_p(mine, theirs, metric)
        assert 0 < there <= 1
        assert there == pytest.approx(paired_p(theirs, mine, metric))


def test_tasks_count_alike_whatever_their_size():
    assert bootstrap([[1.0] * 90, [0.0] * 10]).mean == 0.5


def test_no_score_is_not_a_score():
    assert all(math.isnan(value) for value in estimate([], "exact"))
    assert math.isnan(agreement([], []))


def test_agreement_ignores_blanks_only():
    assert agreement(["red  two", "red"], ["red two", "green"]) == 0.5


def test_holm_corrects_stepwise():
    # Smallest times 3, next times 2, last times 1, and never falling.
    assert adjusted([0.01, 0.04, 0.03], "holm") == pytest.approx([0.03, 0.06, 0.06])
    assert adjusted([0.01, 0.04, 0.03], "bonferroni") == pytest.approx([0.03, 0.12, 0.09])
    assert adjusted([0.01, 0.04, 0.03], "none") == [0.01, 0.04, 0.03]
    assert adjusted([], "holm") == []


def test_one_seed_is_a_bootstrap_over_samples():
    scores = [0.0, 1.0, 1.0, 0.5]
    assert crossed([np.array([scores])]) == bootstrap([scores])
    assert seeds_estimate(np.array([[1.0, 0.0, 1.0]]), "exact") == wilson(2, 3)


def test_seeds_that_disagree_widen_the_interval():
    rng = np.random.default_rng(0)
    samples = (rng.random(200) < 0.5).astype(float)
    alike = np.stack([samples, samples, samples])
    apart = np.stack([samples, np.zeros(200), np.ones(200)])
    same, different = crossed([alike]), crossed([apart])
    assert same.mean == pytest.approx(samples.mean())
    assert different.high - different.low > 2 * (same.high - same.low)
    assert different.low <= different.mean <= different.high


def test_means_over_seeds_are_no_binary_scores():
    mine, theirs = [1.0, 0.5, 1.0, 1.0], [0.0, 0.5, 0.0, 0.5]
    assert paired_p(mine, theirs, "exact") == sign_flip(mine, theirs)
