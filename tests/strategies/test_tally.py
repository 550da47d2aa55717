"""``tally``: its sums by hand, what it remembers, and its counts."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.strategies.sites_factory import layer_site, model_shape
from tokentrim import LayerSite, Need, StrategyError
from tokentrim.contracts.extras import PromptInfo
from tokentrim.counting.schedule import Schedule
from tokentrim_strategies.tally import RunningTally

SHAPE = model_shape(12)


def prompt(*n_visual: int) -> PromptInfo:
    return PromptInfo(n_visual, SHAPE)


def rows(*columns: list[float]) -> tuple[Tensor, Tensor]:
    """Text rows of one head and two words, of which one is padding, that give these columns to each sample."""
    given = torch.tensor(columns)
    return torch.stack([given, given + 7], dim=1).unsqueeze(1), torch.tensor([[True, False]]).expand(len(columns), -1)


def site(
    n: tuple[int, ...], data: tuple[Tensor, Tensor], state: Any, boundary: int, ids: Tensor | None = None
) -> LayerSite:
    return replace(layer_site(n, {Need.TEXT_ROWS: data}, boundary=boundary, ids=ids), state=state, shape=SHAPE)


def test_each_later_cut_keeps_a_share_of_the_first_exactly_at_depths_that_scale():
    assert RunningTally(keep_ratio=0.3).schedule(SHAPE, 100) == Schedule.of({1: 80, 2: 24})
    assert RunningTally(first=0.7, keep_ratio=0.7).schedule(model_shape(32), 100) == Schedule.of({3: 70, 6: 49})
    assert RunningTally(keep_ratio=1).schedule(SHAPE, 7) == Schedule.of({1: 7, 2: 7})
    two = RunningTally(first=0.4, keep_ratio=0.4, boundaries=(2, 7))
    assert two.schedule(SHAPE, 1000) == Schedule.of({2: 400, 7: 160})


def test_what_a_word_found_in_an_earlier_layer_still_counts():
    """Token 2 has most of the first votes; of the second, token 3 (raster number) has."""
    strategy = RunningTally(keep_ratio=0.5)
    state = strategy.begin(prompt(4))
    first = strategy.score(site((4,), rows([0.1, 0.0, 0.2, 0.1]), state, 1))
    assert first.tolist()[0] == pytest.approx([0.25, 0, 0.5, 0.25])
    ids = torch.tensor([[2, 3]])  # what the cut left
    second = strategy.score(site((2,), rows([0.01, 0.03]), state, 2, ids))
    assert second.tolist()[0] == pytest.approx([0.25 + 0.5 / 0.75, 0.75 + 0.25 / 0.75])


def test_latest_forgets():
    strategy = RunningTally(votes="latest")
    state = strategy.begin(prompt(4))
    strategy.score(site((4,), rows([0.1, 0.0, 0.2, 0.1]), state, 1))
    second = strategy.score(site((2,), rows([0.01, 0.03]), state, 2, torch.tensor([[2, 3]])))
    assert second.tolist()[0] == pytest.approx([0.25, 0.75])


def test_a_row_without_visual_tokens_or_without_votes_is_no_matter():
    strategy = RunningTally()
    state = strategy.begin(prompt(3, 0))
    scores = strategy.score(site((3, 0), rows([0.0, 0.0, 0.0], [0.0, 0.0, 0.0]), state, 1))
    assert scores.isfinite().all()


def test_a_boundary_below_one_or_above_the_model_is_refused():
    with pytest.raises(ValueError, match="ascend, from 1 on"):
        RunningTally(boundaries=(0, 2))
    with pytest.raises(StrategyError, match="be below 12"):
        RunningTally(boundaries=(12,)).schedule(SHAPE, 10)
