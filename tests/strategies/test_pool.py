"""``pool`` against loops written from the definition of its cells."""

from fractions import Fraction

import pytest
import torch
from hypothesis import given, strategies as st

from tests.strategies.sites_factory import counts_tensor, layer_site, model_shape, raster_grid
from tokentrim.contracts.selection import Selection
from tokentrim.contracts.sites import Need
from tokentrim.counting.schedule import Schedule
from tokentrim.errors import StrategyError
from tokentrim_strategies.pool import Pool, pooled_grid


def select(rows: int, cols: int, count: int, images: int = 1, spare: int = 0) -> Selection:
    n = rows * cols * images + spare
    grid = raster_grid(rows, cols, images, n=n)
    selection = Pool().select(layer_site((n,), {Need.GRID: grid}), counts_tensor(count))
    selection.check((n,), static=(count,))
    selection.check_indices((n,))
    return selection


def slow_selection(rows: int, cols: int, r: int, c: int, images: int) -> tuple[list[int], list[int]]:
    """(kept, target) of r x c cells per image."""
    cells: dict[tuple[int, int, int], list[int]] = {}
    for token in range(rows * cols * images):
        image, place = divmod(token, rows * cols)
        y, x = divmod(place, cols)
        cells.setdefault((image, y * r // rows, x * c // cols), []).append(token)
    representatives: dict[int, list[int]] = {}
    for members in cells.values():
        ys, xs = [t % (rows * cols) // cols for t in members], [t % cols for t in members]
        middle = Fraction(min(ys) + max(ys), 2), Fraction(min(xs) + max(xs), 2)
        far = [(y - middle[0]) ** 2 + (x - middle[1]) ** 2 for y, x in zip(ys, xs, strict=True)]
        representatives[members[far.index(min(far))]] = members
    kept = sorted(representatives)
    target = {token: kept.index(chosen) for chosen, members in representatives.items() for token in members}
    return kept, [target[token] for token in range(rows * cols * images)]


def test_golden():
    selection = select(4, 4, 4)
    assert selection.kept.tolist() == [[0, 2, 8, 10]]
    assert selection.target is not None
    assert selection.target.tolist() == [[0, 0, 1, 1, 0, 0, 1, 1, 2, 2, 3, 3, 2, 2, 3, 3]]
    assert selection.weight is None


@pytest.mark.parametrize(
    ("count", "grid"),
    [(576, (24, 24)), (288, (16, 18)), (144, (12, 12)), (128, (11, 11)), (64, (8, 8)), (103, (10, 10)), (2, (1, 2)),
     (1, (1, 1)), (0, (0, 0))],
)  # fmt: skip
def test_pooled_grids_of_24_by_24(count: int, grid: tuple[int, int]):
    assert pooled_grid(count, 24, 24) == grid


@given(rows=st.integers(1, 24), cols=st.integers(1, 24), count=st.integers(0, 600))
def test_pooled_grid_is_the_best_of_all(rows: int, cols: int, count: int):
    def value(r: int, c: int) -> Fraction:
        stretch = Fraction(r * cols, c * rows)
        return (r * c) ** 2 * min(stretch, 1 / stretch)

    r, c = pooled_grid(count, rows, cols)
    fitting = [value(i, j) for i in range(1, rows + 1) for j in range(1, cols + 1) if i * j <= count]
    assert r <= rows
    assert c <= cols
    assert r * c <= count
    assert (value(r, c) if r else 0) == max(fitting, default=0)


@given(rows=st.integers(1, 9), cols=st.integers(1, 9), images=st.integers(1, 3), share=st.integers(1, 81))
def test_cells_equal_the_slow_definition(rows: int, cols: int, images: int, share: int):
    r, c = pooled_grid(min(share, rows * cols), rows, cols)
    selection = select(rows, cols, r * c * images, images)
    kept, target = slow_selection(rows, cols, r, c, images)
    assert selection.kept[0].tolist() == kept
    assert selection.target is not None
    assert selection.target[0].tolist() == target


@given(rows=st.integers(1, 9), cols=st.integers(1, 9), images=st.integers(1, 3), data=st.data())
def test_any_count_is_met(rows: int, cols: int, images: int, data: st.DataObject):
    count = data.draw(st.integers(images, rows * cols * images))
    selection = select(rows, cols, count, images)
    assert selection.target is not None
    target, kept = selection.target[0], selection.kept[0]
    assert torch.equal(target[kept], torch.arange(count))  # a kept token points at itself
    assert set(target.tolist()) == set(range(count))


@given(rows=st.integers(1, 24), cols=st.integers(1, 24), images=st.integers(1, 4), ratio=st.integers(0, 100))
def test_schedule_holds_the_realised_count(rows: int, cols: int, images: int, ratio: int):
    n = rows * cols * images
    ((boundary, count),) = Pool(keep_ratio=ratio / 100).schedule(model_shape(grid=(rows, cols)), n)
    r, c = pooled_grid(n * ratio // 100 // images, rows, cols)
    assert (boundary, count) == (0, images * r * c)
    assert count <= n * ratio // 100
    if ratio == 100:
        assert count == n


def test_schedule_without_a_known_grid_counts_as_if_square():
    assert Pool(keep_count=4).schedule(model_shape(), 36) == Schedule.of({0: 4})
    assert Pool(keep_count=5).schedule(model_shape(grid=(5, 5)), 36) == Schedule.of({0: 4})
    assert Pool(keep_count=3).schedule(model_shape(), 7) == Schedule.of({0: 3})
    assert Pool().schedule(model_shape(), 0) == Schedule.of({0: 0})


def test_keeping_all_changes_nothing():
    for spare in (0, 3):
        selection = select(3, 4, 12 + spare, spare=spare)
        assert selection.kept[0].tolist() == list(range(12 + spare))
        assert selection.target is not None
        assert selection.target[0].tolist() == list(range(12 + spare))


def test_tokens_without_a_place_are_dropped():
    selection = select(2, 2, 1, spare=2)
    assert selection.target is not None
    assert selection.target.tolist() == [[0, 0, 0, 0, -1, -1]]


def test_ragged_rows_equal_single_rows():
    grid = raster_grid(4, 4, images=2, batch=3)
    site = layer_site((32, 16, 32), {Need.GRID: grid})
    selection = Pool().select(site, counts_tensor(8, 4, 0))
    two, one = select(4, 4, 8, images=2), select(4, 4, 4)
    assert two.target is not None
    assert one.target is not None
    assert selection.target is not None
    assert selection.kept.tolist() == [two.kept[0].tolist(), one.kept[0].tolist() + [-1] * 4, [-1] * 8]
    assert selection.target[0].tolist() == two.target[0].tolist()
    assert selection.target[1, :16].tolist() == one.target[0].tolist()
    assert set(selection.target[1, 16:].tolist()) == {-1} == set(selection.target[2].tolist())


def test_empty_cells_are_refused():
    with pytest.raises(StrategyError, match="cells with tokens of strategy 'pool' must be 5; got 4"):
        select(2, 2, 5, spare=2)
