"""G-Search on made-up qualities whose least rates are known."""

import pytest
from hypothesis import given, strategies as st

from tokentrim.calibrate.gsearch import grid_of, gsearch, most_trials

GRID = grid_of(0.05)


def needing(least):
    """Quality 1 where every layer keeps at least what it needs, and less the more is missing."""

    def evaluate(rates):
        kept, missing = 1.0, 0.0
        for layer, need in enumerate(least):
            kept = rates.get(layer, kept)
            missing += max(0.0, need - kept)
        return 1.0 - missing

    return evaluate


def per_layer(rates, layers):
    kept, found = 1.0, []
    for layer in range(layers):
        kept = rates.get(layer, kept)
        found.append(kept)
    return found


def test_the_grid_is_decimal():
    assert grid_of(0.25) == (0.0, 0.25, 0.5, 0.75, 1.0)
    assert GRID[:4] == (0.0, 0.05, 0.1, 0.15)
    assert grid_of(0.3) == (0.0, 0.3, 0.6, 0.9, 1.0)
    assert grid_of(1) == (0.0, 1.0)


def test_finds_exactly_the_least_rates():
    least = [1.0, 1.0, 0.8, 0.8, 0.35, 0.1, 0.1, 0.0]
    found = gsearch(needing(least), boundaries=range(1, 8), grid=GRID, least_quality=1.0)
    assert found.rates == {2: 0.8, 4: 0.35, 5: 0.1, 7: 0.0}
    assert per_layer(found.rates, 8) == least


@given(
    falls=st.lists(st.integers(0, 6), min_size=1, max_size=12),
    steps=st.sampled_from([5, 10, 20]),
    first=st.integers(1, 4),
)
def test_any_falling_need_is_found_in_few_trials(falls, steps, first):
    level, least = steps, []
    for fall in falls:
        level = max(0, level - fall)
        least.append(level / steps)
    layers = first + len(least)
    boundaries, grid = range(first, layers), grid_of(1 / steps)
    found = gsearch(needing([1.0] * first + least), boundaries=boundaries, grid=grid, least_quality=1.0)
    assert per_layer(found.rates, layers) == [1.0] * first + least
    assert len(found.trace) <= most_trials(boundaries, grid)
    assert all(entry["rate"] in grid for entry in found.trace)


def test_a_need_that_rises_with_depth_is_met_from_the_start():
    # What a later layer needs an earlier one must let through.
    found = gsearch(needing([1.0, 0.2, 0.6, 0.3]), boundaries=range(1, 4), grid=GRID, least_quality=1.0)
    assert per_layer(found.rates, 4) == [1.0, 0.6, 0.6, 0.3]


def test_the_tolerance_is_spent_where_it_is_first_asked():
    found = gsearch(needing([1.0, 0.5, 0.5]), boundaries=(1, 2), grid=GRID, least_quality=0.8)
    assert per_layer(found.rates, 3) == [1.0, 0.4, 0.4]  # 0.1 missing in both layers


def test_what_cannot_be_cut_is_left():
    assert gsearch(needing([1.0] * 5), boundaries=range(1, 5), grid=GRID, least_quality=1.0).rates == {}


def test_the_trace_says_what_was_tried():
    found = gsearch(needing([1.0, 0.5]), boundaries=(1,), grid=grid_of(0.25), least_quality=1.0)
    assert found.trace == [
        {"boundary": 1, "rate": 0.5, "quality": 1.0, "holds": True},
        {"boundary": 1, "rate": 0.25, "quality": 0.75, "holds": False},
    ]


@given(noise=st.lists(st.floats(0, 1), min_size=30, max_size=30))
def test_whatever_the_quality_every_rate_taken_reached_the_limit(noise):
    answers = iter(noise)
    found = gsearch(lambda _: next(answers), boundaries=range(1, 6), grid=GRID, least_quality=0.5)
    for boundary, rate in found.rates.items():
        assert {"boundary": boundary, "rate": rate, "holds": True}.items() <= next(
            entry for entry in found.trace if (entry["boundary"], entry["rate"]) == (boundary, rate)
        ).items()
    kept = per_layer(found.rates, 6)
    assert kept == sorted(kept, reverse=True)


@pytest.mark.parametrize("boundaries", [(), (3,)])
def test_few_boundaries(boundaries):
    found = gsearch(lambda _: 1.0, boundaries=boundaries, grid=GRID, least_quality=1.0)
    assert found.rates == dict.fromkeys(boundaries, 0.0)
