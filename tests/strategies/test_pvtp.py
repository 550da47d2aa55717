"""``pvtp`` against the closed form and loops written from the formula."""

import math
from fractions import Fraction
from typing import Literal

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.strategies.sites_factory import attention, layer_site, model_shape
from tokentrim.schedule import Schedule
from tokentrim.sites import Need
from tokentrim_strategies.fastv import FastV
from tokentrim_strategies.pvtp import PVTP


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
    expected = {2: 403, 6: 282, 10: 197, 14: 137, 18: 95, 22: 66, 26: 46, 30: 32}
    assert PVTP().schedule(model_shape(32), 576) == Schedule.of(expected)
    per_layer = PVTP().schedule(model_shape(32), 576).per_layer(32, 576)
    assert sum(per_layer) / 32 / 576 == pytest.approx(0.332, abs=5e-4)


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
