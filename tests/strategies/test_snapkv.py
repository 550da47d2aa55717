"""``snapkv``: smoothed attention of the prompt's end, by hand and against a slow reference."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings, strategies as st

from tests.strategies.sites_factory import attention, step_site
from tokentrim import Need
from tokentrim.config.specs import strategy_from
from tokentrim_strategies.snapkv import SnapKV


def test_scores_by_hand():
    rows = torch.tensor([[[0.0, 0.6, 0.0, 0.0], [0.3, 0.0, 0.0, 0.9]]])
    score = SnapKV(kernel=3).score(step_site((4,), {Need.PROMPT_WINDOW: rows}))
    # Mean of the two heads 0.15, 0.3, 0, 0.45, then of each entry and its neighbours: zeros beyond the ends count.
    torch.testing.assert_close(score, torch.tensor([[0.15, 0.15, 0.25, 0.15]]))


@settings(max_examples=40)
@given(st.lists(st.integers(0, 12), min_size=1, max_size=3), st.sampled_from([1, 3, 5, 7]), st.integers(0, 99))
def test_scores_are_the_slow_ones_and_padding_does_not_count(counts: list[int], kernel: int, seed: int):
    rows = attention(len(counts), 2, max(counts), seed=seed)
    score = SnapKV(kernel=kernel).score(step_site(tuple(counts), {Need.PROMPT_WINDOW: rows}))
    for row, n in enumerate(counts):
        for entry in range(n):
            near = rows[row, :, max(0, entry - kernel // 2) : min(n, entry + kernel // 2 + 1)]
            assert float(score[row, entry]) == pytest.approx(float(near.sum() / kernel / 2), rel=1e-5)


def test_counts_and_refusals():
    shape = step_site((1,)).shape
    assert [SnapKV(keep_ratio=0.3).count(step, 1, 11, shape) for step in (1, 9)] == [3, 3]
    assert SnapKV(keep_count=20).count(1, 0, 11, shape) == 11
    with pytest.raises(Exception, match="kernel of strategy 'snapkv' must be odd"):
        strategy_from({"name": "snapkv", "kernel": 4})
    with pytest.raises(Exception, match="exactly one"):
        strategy_from({"name": "snapkv", "keep_ratio": 0.5, "keep_count": 3})
