"""``holov`` against its definition, one crop after the other."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, strategies as st
from torch import Tensor

from tests.strategies.sites_factory import attention, counts_tensor, layer_site, model_shape
from tokentrim.contracts.selection import Selection
from tokentrim.contracts.sites import Need
from tokentrim.counting.published import PRESETS
from tokentrim_strategies.holov import HoloV


def select(rows: Tensor, n: tuple[int, ...], counts: tuple[int, ...], **options: object) -> Selection:
    strategy = HoloV.model_validate(options)
    selection = strategy.select(layer_site(n, {Need.VISION_ROWS: rows}), counts_tensor(*counts))
    selection.check(n, static=counts if strategy.count_is_static else None, limit=counts)
    selection.check_indices(n)
    return selection


def slow(scores: list[float], total: int, crops: int, *, exact: bool) -> list[int]:
    n, places = len(scores), list(range(len(scores)))
    sizes = [n // crops + (crop < n % crops) for crop in range(crops)]
    members = [places[sum(sizes[:crop]) :][: sizes[crop]] for crop in range(crops)]
    weights = [math.fsum(scores[j] for j in crop) / len(crop) for crop in members]
    if not exact:
        weights = [weight / 1090 if len(crop) == 1 else weight for weight, crop in zip(weights, members, strict=True)]
    quotas = [math.floor(total * weight / math.fsum(weights)) for weight in weights]
    for crop in sorted(range(crops), key=lambda crop: -weights[crop])[: total - sum(quotas)]:
        quotas[crop] += 1
    ranked = [sorted(crop, key=lambda j: -scores[j]) for crop in members]
    kept = [j for crop, quota in zip(ranked, quotas, strict=True) for j in crop[:quota]]
    others = sorted(set(places) - set(kept), key=lambda j: -scores[j])
    return sorted(kept + others[: total - len(kept)] if exact else kept)


def test_golden():
    """Crops 0-2, 3-5, 6-7 with means 3, 1 and 2: of 4 tokens 2, 0 and 1, and the one that is left goes to the first."""
    rows = torch.tensor([[[[1.0, 6.0, 2.0, 2.0, 0.5, 0.5, 1.0, 3.0]]]])
    assert select(rows, (8,), (4,), crops=3).kept.tolist() == [[0, 1, 2, 7]]
    # Of 6 tokens the first crop is asked for 4, one more than it has: token 3 comes instead, the best of the rest.
    assert select(rows, (8,), (6,), crops=3).kept.tolist() == [[0, 1, 2, 3, 6, 7]]
    assert select(rows, (8,), (6,), crops=3, total="released").counts == (6,)
    rows[..., 1] = 60.0  # of 6 tokens 5 are the first crop's, which has 3
    assert select(rows, (8,), (6,), crops=3, total="released").kept.tolist() == [[0, 1, 2]]
    assert select(rows, (8,), (6,), crops=3).kept.tolist() == [[0, 1, 2, 3, 6, 7]]


@given(n=st.integers(1, 40), seed=st.integers(0, 99), data=st.data())
def test_equals_the_loop(n: int, seed: int, data: st.DataObject):
    total, crops = data.draw(st.integers(0, n)), data.draw(st.integers(1, 9))
    rows = attention(1, 1, 2, n, seed=seed).pow(6)
    scores = rows[0, 0].float().mean(dim=0).tolist()
    for name in ("exact", "released"):
        expected = slow(scores, total, min(crops, n), exact=name == "exact")
        assert select(rows, (n,), (total,), crops=crops, total=name).kept[0].tolist() == expected


@pytest.mark.parametrize("total", ["exact", "released"])
def test_ragged_rows_equal_single_rows(total: str):
    n, counts = (30, 17, 0, 24, 5), (11, 4, 0, 24, 0)
    rows = attention(5, 1, 2, 30).pow(6)
    together = select(rows, n, counts, total=total)
    for row, (own, count) in enumerate(zip(n, counts, strict=True)):
        single = select(rows[row : row + 1, :, :, :own], (own,), (count,), total=total)
        assert together.kept[row, : together.counts[row]].tolist() == single.kept[0].tolist()


def test_crops_and_budget():
    """16 where the tower has a [CLS]; without one by the budget, as in the code for Qwen."""
    plain, native = PRESETS["llava-1.5-7b"], PRESETS["qwen2.5-vl-7b"]
    assert [HoloV().crops_of(shape, 576, 64) for shape in (model_shape(), plain, native)] == [16, 16, 16]
    assert [HoloV().crops_of(native, 1296, count) for count in (0, 128, 1296)] == [1296, 18, 1]
    assert HoloV(crops=4).crops_of(native, 3, 1) == 3
    assert HoloV().at_budget(plain, 576, layer_mean_ratio=64 / 576)[1] == 64 / 576
    site = replace(layer_site((8,), {Need.VISION_ROWS: attention(1, 1, 1, 8)}), shape=native)
    assert HoloV().select(site, counts_tensor(2)).counts == (2,)
