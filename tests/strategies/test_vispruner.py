"""``vispruner`` against the loop of its definition, for odd and even sizes."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, strategies as st
from pydantic import ValidationError
from torch import Tensor

from tests.strategies.sites_factory import attention, counts_tensor, layer_site
from tokentrim.contracts.selection import Selection
from tokentrim.contracts.sites import Need
from tokentrim.counting.published import PRESETS
from tokentrim_strategies.vispruner import VisPruner


def drawn(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def select(
    rows: Tensor, features: Tensor, n: tuple[int, ...], counts: tuple[int, ...], share: float = 0.5
) -> Selection:
    site = layer_site(n, {Need.VISION_ROWS: rows, Need.FEATURES: features})
    selection = VisPruner(important=share).select(site, counts_tensor(*counts))
    selection.check(n, static=counts)
    selection.check_indices(n)
    return selection


def cosines(features: Tensor) -> list[list[float]]:
    """In the working precision, float32: among hundreds of tokens, rounding decides about neighbours in a ranking."""
    directions = torch.nn.functional.normalize(features.float(), dim=-1)
    return (directions @ directions.T).tolist()


def slow_selection(score: list[float], cosine: list[list[float]], total: int, share: float = 0.5) -> list[int]:
    order = sorted(range(len(score)), key=lambda j: -score[j])
    top = math.floor(total * share)
    important, rest = order[:top], order[top:]
    wanted = total - top
    while len(rest) > wanted:
        a, b = rest[::2], rest[1::2]
        similar = {i: max((cosine[i][j] for j in b), default=-2.0) for i in a}
        a = sorted(a, key=lambda i: -similar[i])
        rest = a[min(8, len(rest) - wanted, len(a)) :] + b
    return sorted(important + rest)


def test_golden():
    """Important: 4. Of the rest (0, 1, 2, 3 by attention), 0 equals 1, and then 2 is nearer to 3 than 1 is."""
    rows = torch.tensor([[[[0.4, 0.3, 0.2, 0.1, 0.9]]]])
    features = torch.tensor([[[1.0, 0.0], [2.0, 0.0], [0.0, 1.0], [0.2, 1.0], [5.0, 5.0]]])
    assert select(rows, features, (5,), (4,), 0.25).kept.tolist() == [[1, 2, 3, 4]]
    expected = slow_selection([0.4, 0.3, 0.2, 0.1, 0.9], cosines(features[0]), 2)
    assert select(rows, features, (5,), (2,)).kept.tolist() == [expected]


@given(n=st.integers(1, 60), seed=st.integers(0, 99), data=st.data())
def test_equals_the_loop(n: int, seed: int, data: st.DataObject):
    total = data.draw(st.integers(0, n))
    share = data.draw(st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0]))
    rows, features = attention(1, 1, 2, n, seed=seed), drawn(1, n, 4, seed=seed)
    kept = select(rows, features, (n,), (total,), share).kept[0].tolist()
    assert kept == slow_selection(rows[0, 0].mean(0).tolist(), cosines(features[0]), total, share)


@pytest.mark.parametrize("total", [192, 128, 64, 58, 29, 1])
def test_of_576_odd_remainders_included(total: int):
    rows, features = attention(1, 1, 2, 576), drawn(1, 576, 8, seed=0)
    selection = select(rows, features, (576,), (total,))
    assert selection.kept[0].tolist() == slow_selection(rows[0, 0].mean(0).tolist(), cosines(features[0]), total)


def test_ragged_rows_equal_single_rows():
    n, counts = (30, 17, 0, 24), (11, 4, 0, 24)
    rows, features = attention(4, 1, 2, 30), drawn(4, 30, 4, seed=3)
    together = select(rows, features, n, counts)
    for row, (own, count) in enumerate(zip(n, counts, strict=True)):
        if own:
            single = select(rows[row : row + 1, :, :, :own], features[row : row + 1, :own], (own,), (count,))
            assert together.kept[row, :count].tolist() == single.kept[0].tolist()


@pytest.mark.parametrize("total", [1, 4, 9])
def test_more_attention_makes_important(total: int):
    """All by attention: raising a token's attention never drops it."""
    rows, features = attention(1, 1, 2, 12), drawn(1, 12, 4, seed=0)
    for token in range(12):
        more = rows.clone()
        more[..., token] += 1
        assert token in select(more, features, (12,), (total,), 1.0).kept[0].tolist()


def test_only_important_is_the_top_of_the_ranking():
    rows, features = attention(1, 1, 2, 12), drawn(1, 12, 4, seed=0)
    expected = sorted(rows[0, 0].mean(0).argsort(descending=True)[:5].tolist())
    assert select(rows, features, (12,), (5,), 1.0).kept[0].tolist() == expected


def test_duplicates_go_first():
    """Ten pairs of equal tokens, a budget of ten by diversity alone: one of each pair is left."""
    directions = drawn(1, 10, 16, seed=1)
    features = torch.cat([directions, 3 * directions], dim=1)
    # Ranked 0, 10, 1, 11, ...: every pair is split between the halves.
    rows = torch.tensor([[[[20.0 - 2 * (j % 10) - j // 10 for j in range(20)]]]])
    kept = select(rows, features, (20,), (10,), 0.0).kept[0]
    assert sorted((kept % 10).tolist()) == list(range(10))


def test_budget_and_parameters():
    _, realised = VisPruner().at_budget(PRESETS["llava-1.5-7b"], 576, layer_mean_ratio=58 / 576)
    assert realised == 58 / 576
    assert VisPruner(block=-1).wants_vision_blocks(-2) == (-1,)
    with pytest.raises(ValidationError):
        VisPruner.model_validate({"important": 1.5})
