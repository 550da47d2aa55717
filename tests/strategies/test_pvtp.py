"""``pvtp`` against the closed form and loops written from the formula."""

import math
from dataclasses import replace
from fractions import Fraction
from typing import Literal

import pytest
import torch
from hypothesis import given, strategies as st

from tests.strategies.sites_factory import attention, layer_site, model_shape
from tokentrim.contracts.extras import PromptInfo
from tokentrim.contracts.selection import top_selection
from tokentrim.contracts.sites import Need
from tokentrim.counting.schedule import Schedule
from tokentrim_strategies.fastv import FastV
from tokentrim_strategies.pvtp import PVTP, Inheritance
from tokentrim_strategies.st3 import ST3


@pytest.mark.parametrize(
    ("layers", "start", "stride", "ratio", "n", "last"),
    [
        (32, 2, 4, 0.25, 576, 57),
        (32, 2, 4, 0.30, 576, 32),
        (32, 2, 8, 0.50, 576, 36),
        (32, 2, 2, 0.20, 576, 19),
        (32, 3, 4, 0.50, 576, 2),
        (40, 2, 4, 0.25, 576, 31),
        (40, 2, 4, 0.30, 576, 15),
        (32, 2, 4, 0.30, 2880, 165),  # a floor of the binary product ends with 164
    ],
)
def test_last_layer_of_the_cost_table(layers: int, start: int, stride: int, ratio: float, n: int, last: int):
    schedule = PVTP(start=start, stride=stride, prune_ratio=ratio).schedule(model_shape(layers), n)
    assert schedule.per_layer(layers, n)[-1] == last


def test_schedule_of_the_default():
    assert PVTP().schedule(model_shape(32), 576) == Schedule.of({2: 288, 13: 144, 24: 72})
    expected = {2: 403, 6: 282, 10: 197, 14: 137, 18: 95, 22: 66, 26: 46, 30: 32}
    assert PVTP(stride=4, prune_ratio=0.3).schedule(model_shape(32), 576) == Schedule.of(expected)
    per_layer = PVTP().schedule(model_shape(32), 576).per_layer(32, 576)
    assert sum(per_layer) / 32 / 576 == pytest.approx(0.3516, abs=5e-4)


@pytest.mark.parametrize(
    ("layers", "boundaries"), [(3, [2]), (6, [2, 5]), (12, [2, 7]), (14, [2, 7, 12]), (40, [2, 16, 30])]
)
def test_the_default_stride_follows_depth(layers: int, boundaries: list[int]):
    assert list(PVTP().boundaries(model_shape(layers))) == boundaries


def test_linear_schedule_takes_the_same_number_each_time():
    schedule = PVTP(rule="linear", prune_ratio=0.3, stride=8).schedule(model_shape(32), 576)
    assert schedule == Schedule.of({2: 403, 10: 230, 18: 57, 26: 0})  # 172.8 goes: 173 after the floor


@given(
    layers=st.integers(2, 60),
    start=st.integers(1, 59),
    stride=st.integers(1, 12),
    thousandths=st.integers(0, 1000),
    rule=st.sampled_from(["geometric", "linear"]),
    n=st.integers(0, 4000),
)
def test_counts_equal_the_closed_form(
    layers: int, start: int, stride: int, thousandths: int, rule: Literal["geometric", "linear"], n: int
):
    start = min(start, layers - 1)
    strategy = PVTP(start=start, stride=stride, prune_ratio=thousandths / 1000, rule=rule)
    ratio, current, expected = Fraction(thousandths, 1000), n, dict[int, int]()
    for boundary in range(layers):
        if boundary >= start and (boundary - start) % stride == 0:
            left = (1 - ratio) * current if rule == "geometric" else current - ratio * n
            current = max(0, math.floor(left))
            expected[boundary] = current
    assert strategy.schedule(model_shape(layers), n) == Schedule.of(expected)


def test_one_boundary_is_fastv():
    shape = model_shape(32)
    single, fastv = PVTP(start=2, stride=30, prune_ratio=0.5), FastV(k=2, keep_ratio=0.5)
    assert single.schedule(shape, 576) == fastv.schedule(shape, 576)
    site = layer_site((6,), {Need.LAST_ROW: attention(1, 4, 6)}, boundary=2)
    assert torch.equal(single.score(site), fastv.score(site))


def test_score_of_text_rows_averages_heads_and_real_text():
    rows, valid = attention(2, 3, 4, 5), torch.tensor([[True, True, True, True], [True, True, False, False]])
    rows[1, :, 2:] = torch.nan  # padding may hold anything
    strategy = PVTP(query="text")
    assert strategy.needed() == {Need.TEXT_ROWS}
    score = strategy.score(layer_site((5, 5), {Need.TEXT_ROWS: (rows, valid)}, boundary=2))
    for sample, real in enumerate([4, 2]):
        for token in range(5):
            seen = [rows[sample, head, text, token].item() for head in range(3) for text in range(real)]
            assert score[sample, token].item() == pytest.approx(sum(seen) / len(seen), abs=1e-15)


def test_score_of_the_last_row_averages_heads():
    rows = attention(1, 3, 5)
    assert PVTP().needed() == {Need.LAST_ROW}
    score = PVTP().score(layer_site((5,), {Need.LAST_ROW: rows}, boundary=2))
    expected = [sum(rows[0, head, token].item() for head in range(3)) / 3 for token in range(5)]
    assert score[0].tolist() == pytest.approx(expected, abs=1e-15)


# ---------------------------------------------------------------------- heredity


def cuts(strategy: PVTP, rows: dict[int, torch.Tensor], sizes: tuple[int, ...]) -> dict[int, list[list[int]]]:
    """Kept raster numbers after each boundary, by the way the engine asks."""
    shape = model_shape(max(rows) + 1)
    state = strategy.begin(PromptInfo(sizes, shape))
    current = [list(range(size)) for size in sizes]
    found = dict[int, list[list[int]]]()
    for boundary in strategy.schedule(shape, sizes[0]).boundaries:
        counts = [strategy.schedule(shape, size).count_at(boundary) for size in sizes]
        width = max(map(len, current))
        ids = torch.tensor([[*kept, *[-1] * (width - len(kept))] for kept in current])
        seen = rows[boundary].gather(2, ids.clamp(min=0).unsqueeze(1).expand(-1, rows[boundary].shape[1], -1))
        site = layer_site(tuple(map(len, current)), {Need.LAST_ROW: seen}, boundary=boundary, ids=ids)
        score = strategy.score(replace(site, shape=shape, state=state))
        kept = top_selection(score, tuple(counts), tuple(map(len, current)))
        current = [
            [current[row][index] for index in kept.kept[row, : counts[row]].tolist()] for row in range(len(sizes))
        ]
        found[boundary] = current
    return found


def inherited(rows: dict[int, torch.Tensor], row: int, size: int, strategy: PVTP) -> dict[int, list[int]]:
    """The same by the definition: rank at every heredity-th pruning boundary, drop the least of what is left."""
    shape, kept, found = model_shape(max(rows) + 1), list(range(size)), dict[int, list[int]]()
    ranking: list[float] = []
    for index, (boundary, count) in enumerate(strategy.schedule(shape, size)):
        if index % strategy.heredity == 0:
            ranking = rows[boundary][row].mean(dim=0).tolist()
        kept = sorted(sorted(kept, key=lambda token: (-ranking[token], token))[:count])
        found[boundary] = kept
    return found


@pytest.mark.parametrize(("stride", "heredity"), [(1, 1), (1, 3), (2, 2), (1, 100)])
def test_boundaries_of_a_block_share_the_first_ones_ranking(stride: int, heredity: int):
    strategy = PVTP(start=1, stride=stride, prune_ratio=0.3, heredity=heredity)
    rows = {boundary: attention(2, 3, 20, seed=boundary) for boundary in range(8)}
    rows[7] = attention(2, 3, 20, seed=7)
    found = cuts(strategy, rows, (20, 13))
    for row, size in enumerate((20, 13)):
        expected = inherited(rows, row, size, strategy)
        assert {boundary: kept[row] for boundary, kept in found.items()} == expected


def test_a_row_alone_inherits_as_in_the_batch():
    strategy = PVTP(start=1, stride=1, prune_ratio=0.4, heredity=2)
    rows = {boundary: attention(2, 2, 12, seed=boundary) for boundary in range(6)}
    together = cuts(strategy, rows, (12, 5))
    alone = cuts(strategy, {b: r[1:] for b, r in rows.items()}, (5,))
    assert {b: kept[1] for b, kept in together.items()} == {b: kept[0] for b, kept in alone.items()}


def test_a_row_that_was_not_asked_ranks_where_it_first_is():
    state, ids = Inheritance((3, 3)), torch.tensor([[0, 1, 2], [0, 1, 2]])
    old, new = attention(2, 3), attention(2, 3, seed=1)
    assert torch.equal(state.inherited(lambda: new, ids), new)
    state.store(old, ids, {1})
    assert torch.equal(state.inherited(lambda: new, ids), torch.stack([new[0], old[1]]))
    state.store(old, ids, {0})
    assert torch.equal(state.inherited(lambda: pytest.fail("all rows are known"), ids), old)


def test_heredity_is_off_by_default_and_st3_has_it():
    assert PVTP().begin(PromptInfo((4,), model_shape(4))) is None
    (spatial,) = ST3(heredity=3).spatial_parts
    assert isinstance(spatial, PVTP)
    assert spatial.heredity == 3
