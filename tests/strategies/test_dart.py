"""``dart`` against the loop of its definition, in ragged batches, and where pivots are few."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, strategies as st
from torch import Tensor

from tests.strategies.sites_factory import counts_tensor, layer_site, model_shape
from tokentrim.contracts.selection import Selection
from tokentrim.contracts.sites import Need
from tokentrim.counting.published import PRESETS
from tokentrim_strategies.dart import DART

WIDTH, HEADS, SIZE = 6, 2, 3


def drawn(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def data_of(n: tuple[int, ...], texts: tuple[int, ...], seed: int, front: int = 2) -> dict[Need, Any]:
    """``texts``: tokens behind the image; two more stand in front of it."""
    rows, width, length = len(n), max(n), front + max(texts)
    real = torch.arange(length) < torch.tensor(texts).unsqueeze(1) + front
    behind = real & (torch.arange(length) >= front)
    return {
        Need.HIDDEN: drawn(rows, width, WIDTH, seed=seed),
        Need.TEXT_HIDDEN: (drawn(rows, length, WIDTH, seed=seed + 1), real, behind),
        Need.KEYS: drawn(rows, HEADS, width, SIZE, seed=seed + 2),
        Need.TEXT_KEYS: (drawn(rows, HEADS, length, SIZE, seed=seed + 3), real, behind),
        Need.FINAL_NORM: lambda vectors: vectors * torch.arange(1, WIDTH + 1),
    }


def select(strategy: DART, n: tuple[int, ...], data: dict[Need, Any], counts: tuple[int, ...]) -> Selection:
    selection = strategy.select(layer_site(n, data, boundary=2), counts_tensor(*counts))
    selection.check(n, static=counts)
    selection.check_indices(n)
    return selection


def slow_selection(strategy: DART, data: dict[Need, Any], row: int, n: int, count: int) -> list[int]:
    if count == n:
        return list(range(n))
    norm = data[Need.FINAL_NORM]
    states, words = norm(data[Need.HIDDEN][row]), norm(data[Need.TEXT_HIDDEN][0][row])
    image = data[Need.KEYS][row].abs().sum((0, 2)).tolist()[:n]
    text = data[Need.TEXT_KEYS][0][row].abs().sum((0, 2)).tolist()
    behind = torch.nonzero(data[Need.TEXT_KEYS][2][row])[:, 0].tolist()
    first = sorted(sorted(range(n), key=lambda j: -image[j])[: strategy.image_pivots])
    second = sorted(sorted(behind, key=lambda j: -text[j])[: strategy.text_pivots])
    pivots = [states[j] for j in first] + [words[j] for j in second]
    taken = first[:count]
    each = -(-(count - len(first)) // strategy.pivots)
    for turn in range(strategy.pivots):
        cosine = torch.nn.functional.cosine_similarity(pivots[turn % len(pivots)], states[:n], dim=-1).tolist()
        rest = sorted((j for j in range(n) if j not in taken), key=lambda j: cosine[j])
        taken = taken + rest[: min(each, count - len(taken))]
    return sorted(taken)


@given(n=st.integers(1, 30), text=st.integers(0, 6), image=st.integers(1, 4), words=st.integers(0, 4), data=st.data())
def test_equals_the_loop(n: int, text: int, image: int, words: int, data: st.DataObject):
    strategy = DART(keep_count=data.draw(st.integers(1, n)), image_pivots=image, text_pivots=words)
    count = strategy.schedule(model_shape(), n).count_at(2)
    given_ = data_of((n,), (text,), seed=data.draw(st.integers(0, 99)))
    assert select(strategy, (n,), given_, (count,)).kept[0].tolist() == slow_selection(strategy, given_, 0, n, count)


def test_ragged_rows_equal_single_rows():
    n, texts, counts = (24, 9, 1, 24, 0), (6, 1, 3, 0, 2), (12, 4, 1, 24, 0)
    data = data_of(n, texts, seed=5)
    together = select(DART(), n, data, counts)
    for row, (own, count) in enumerate(zip(n, counts, strict=True)):
        assert together.kept[row, :count].tolist() == slow_selection(DART(), data, row, own, count)


def test_by_hand():
    """Token 3 has the longest key. It resembles 2 least, then 0; the only word behind the image resembles 1 least."""
    states = torch.tensor([[[0.0, 1.0], [-1.0, 0.1], [-1.0, -1.0], [1.0, 1.0], [1.0, 0.9]]])
    word = torch.tensor([[[1.0, 0.0]]])
    real = torch.ones(1, 1, dtype=torch.bool)
    data = {
        Need.HIDDEN: states,
        Need.TEXT_HIDDEN: (word, real, real),
        Need.KEYS: torch.tensor([[[[1.0], [2.0], [3.0], [-9.0], [4.0]]]]),
        Need.TEXT_KEYS: (torch.ones(1, 1, 1, 1), real, real),
        Need.FINAL_NORM: lambda vectors: vectors,
    }
    strategy = DART(keep_count=2, image_pivots=1, text_pivots=1)
    assert strategy.schedule(model_shape(), 5).steps == ((2, 3),)
    assert select(strategy, (5,), data, (3,)).kept.tolist() == [[1, 2, 3]]


@pytest.mark.parametrize(("asked", "kept"), [(192, 196), (128, 132), (64, 68), (0, 0), (7, 4), (576, 576), (575, 572)])
def test_keeps_what_the_authors_keep(asked: int, kept: int):
    assert DART(keep_count=asked).schedule(model_shape(), 576).steps == ((2, kept),)


def test_meets_a_budget_that_its_steps_allow():
    shape = PRESETS["llava-1.5-7b"]
    strategy, realised = DART().at_budget(shape, 576, layer_mean_ratio=0.25)
    assert realised == pytest.approx(0.25, abs=8 / 576)
    assert strategy.schedule(shape, 576).count_at(2) % 8 == 4
