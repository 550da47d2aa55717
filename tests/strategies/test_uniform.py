"""``uniform`` is exact and evenly spread."""

from itertools import pairwise

from hypothesis import given, strategies as st

from tests.strategies.sites_factory import counts_tensor, layer_site
from tokentrim_strategies.uniform import Uniform


def kept(n: int, count: int) -> list[int]:
    return Uniform().select(layer_site((n,)), counts_tensor(count)).kept[0].tolist()


def test_golden():
    assert kept(10, 5) == [1, 3, 5, 7, 9]
    assert kept(9, 3) == [1, 4, 7]
    assert kept(7, 1) == [3]
    assert kept(6, 0) == []
    assert kept(576, 4) == [72, 216, 360, 504]


@given(st.integers(1, 3000).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n))))
def test_even_and_exact(case: tuple[int, int]):
    n, count = case
    selection = Uniform().select(layer_site((n,)), counts_tensor(count))
    selection.check((n,), static=(count,))
    selection.check_indices((n,))
    indices = selection.kept[0].tolist()
    gaps = {after - before for before, after in pairwise(indices)}
    assert max(gaps, default=0) - min(gaps, default=0) <= 1
    if count == n:
        assert indices == list(range(n))
    if count:  # as far from one end as from the other, to within one token
        assert abs(indices[0] - (n - 1 - indices[-1])) <= 1


def test_ragged_rows_equal_single_rows():
    selection = Uniform().select(layer_site((10, 4, 7)), counts_tensor(5, 0, 3))
    assert selection.kept.tolist() == [kept(10, 5), [-1] * 5, [*kept(7, 3), -1, -1]]
    assert selection.counts == (5, 0, 3)
