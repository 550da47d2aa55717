"""``uniform`` is exact and spread, by stretches of the raster."""

from itertools import pairwise
from typing import Any

from hypothesis import given, strategies as st

from tests.strategies.sites_factory import counts_tensor, layer_site
from tokentrim.contracts.sites import Need
from tokentrim_strategies.uniform import Uniform

CASES = st.integers(1, 3000).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n)))


def kept(n: int, count: int, **parameters: Any) -> list[int]:
    strategy = Uniform(**{"pattern": "stride", **parameters})
    site = layer_site((n,), dict.fromkeys(strategy.needed()))
    selection = strategy.select(site, counts_tensor(count))
    selection.check((n,), static=(count,))
    selection.check_indices((n,))
    return selection.kept[0].tolist()


def test_golden():
    assert kept(10, 5) == [1, 3, 5, 7, 9]
    assert kept(9, 3) == [1, 4, 7]
    assert kept(7, 1) == [3]
    assert kept(6, 0) == []
    assert kept(576, 4) == [72, 216, 360, 504]


@given(CASES)
def test_strides_are_even(case: tuple[int, int]):
    n, count = case
    indices = kept(n, count)
    gaps = {after - before for before, after in pairwise(indices)}
    assert max(gaps, default=0) - min(gaps, default=0) <= 1
    if count:  # as far from one end as from the other, to within one token
        assert abs(indices[0] - (n - 1 - indices[-1])) <= 1


@given(CASES, st.integers(0, 3))
def test_jitter_stays_in_its_stretch(case: tuple[int, int], seed: int):
    n, count = case
    indices = kept(n, count, pattern="jitter", seed=seed)
    assert all(i * n // count <= index < (i + 1) * n // count for i, index in enumerate(indices))


def test_jitter_meets_no_grid():
    """A quarter of 24 x 24: the middles fill six columns, the jitter leaves none out."""
    assert len({index % 24 for index in kept(576, 144)}) == 6
    assert len({index % 24 for index in kept(576, 144, pattern="jitter")}) == 24


def test_ragged_rows_equal_single_rows():
    site = layer_site((10, 4, 7), {Need.RANDOM: None}, keys=(1, 1, 1))
    selection = Uniform().select(site, counts_tensor(5, 0, 3))
    jitter = {"pattern": "jitter"}
    assert selection.kept.tolist() == [kept(10, 5, **jitter), [-1] * 5, [*kept(7, 3, **jitter), -1, -1]]
    assert selection.counts == (5, 0, 3)
