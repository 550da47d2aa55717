"""``fastv`` against loops written from the formula."""

from typing import Literal

import pytest
import torch

from tests.strategies.sites_factory import attention, layer_site, model_shape
from tokentrim.contracts.selection import top_selection
from tokentrim.contracts.sites import Need
from tokentrim.counting.schedule import Schedule
from tokentrim_strategies.fastv import FastV

SOURCES: list[tuple[Literal["last", "all"], Need]] = [("last", Need.LAST_ROW), ("all", Need.COLUMN_MEAN)]


@pytest.mark.parametrize(("query", "need"), SOURCES)
def test_score_is_the_mean_over_heads(query: Literal["last", "all"], need: Need):
    rows = attention(2, 3, 7)
    strategy = FastV(query=query)
    assert strategy.needed() == {need} <= strategy.needs
    score = strategy.score(layer_site((7, 7), {need: rows}, boundary=2))
    for sample in range(2):
        for token in range(7):
            expected = sum(rows[sample, head, token].item() for head in range(3)) / 3
            assert score[sample, token].item() == pytest.approx(expected, abs=1e-15)


def test_keeps_the_most_attended():
    rows = torch.tensor([[[0.1, 0.3, 0.0, 0.2], [0.1, 0.1, 0.5, 0.2]]])  # means 0.1, 0.2, 0.25, 0.2
    score = FastV().score(layer_site((4,), {Need.LAST_ROW: rows}, boundary=2))
    assert top_selection(score, (2,), (4,)).kept.tolist() == [[1, 2]]


def test_schedule():
    assert FastV().schedule(model_shape(), 576) == Schedule.of({2: 288})
    assert FastV(k=3, keep_ratio=0.25).schedule(model_shape(), 577) == Schedule.of({3: 144})
    assert FastV(keep_count=58).schedule(model_shape(), 576) == Schedule.of({2: 58})


@pytest.mark.parametrize(("k", "kept", "mean"), [(2, 166, 192), (2, 98, 128), (2, 30, 64), (3, 152, 192), (3, 82, 128)])
def test_layer_mean_of_the_published_budgets(k: int, kept: int, mean: int):
    layers = FastV(k=k, keep_count=kept).schedule(model_shape(), 576).per_layer(32, 576)
    assert sum(layers) / 32 == pytest.approx(mean, abs=0.7)
