"""``divprune``: what the shared greedy selection leaves open (tests/contracts/test_greedy.py has the loops)."""

from __future__ import annotations

import torch
from torch import Tensor

from tests.strategies.sites_factory import counts_tensor, layer_site
from tokentrim.contracts.selection import Selection
from tokentrim.contracts.sites import Need
from tokentrim.counting.published import PRESETS
from tokentrim_strategies.divprune import DivPrune


def select(features: Tensor, n: tuple[int, ...], counts: tuple[int, ...]) -> Selection:
    selection = DivPrune().select(layer_site(n, {Need.FEATURES: features}), counts_tensor(*counts))
    selection.check(n, static=counts)
    selection.check_indices(n)
    return selection


def test_by_hand():
    """Directions in degrees: the nearest other of 80 is 50 away, so it comes first; farthest from it is 200, then 0."""
    angles = torch.tensor([0.0, 10.0, 30.0, 80.0, 200.0, 160.0]).deg2rad()
    features = torch.stack([angles.cos(), angles.sin()], dim=-1).unsqueeze(0) * 3
    assert select(features, (6,), (2,)).kept.tolist() == [[3, 4]]
    assert select(features, (6,), (4,)).kept.tolist() == [[0, 3, 4, 5]]


def test_ragged_rows_equal_single_rows():
    n, counts = (30, 17, 0, 24, 1), (11, 0, 0, 24, 1)
    features = torch.randn(5, 30, 8, generator=torch.Generator().manual_seed(0))
    together = select(features, n, counts)
    for row, (own, count) in enumerate(zip(n, counts, strict=True)):
        if own:
            single = select(features[row : row + 1, :own], (own,), (count,))
            assert together.kept[row, :count].tolist() == single.kept[0].tolist()


def test_no_token_twice():
    """Three distinct tokens of twelve, a budget of five: the first of each, then the lowest that are left."""
    features = torch.eye(3).repeat_interleave(4, dim=0).unsqueeze(0) * torch.arange(1, 13).view(1, 12, 1)
    assert select(features, (12,), (5,)).kept.tolist() == [[0, 1, 2, 4, 8]]


def test_the_budget_of_the_release():
    _, realised = DivPrune().at_budget(PRESETS["llava-1.5-7b"], 576, layer_mean_ratio=56 / 576)
    assert realised == 56 / 576
