"""``prumerge`` against the loops of its definition, with and without a budget."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st
from pydantic import ValidationError
from torch import Tensor

from tests.strategies.sites_factory import attention, counts_tensor, layer_site, raster_grid
from tokentrim.contracts.selection import Selection
from tokentrim.contracts.sites import Grid, Need
from tokentrim.counting.published import PRESETS
from tokentrim_strategies.prumerge import PruMerge


def drawn(batch: int, width: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    keys, hidden = (torch.randn(batch, width, 6, generator=torch.Generator().manual_seed(seed + i)) for i in (0, 1))
    return attention(batch, 1, 1, width, seed=seed).float() ** 6 / 8, keys.unsqueeze(1), hidden


def select(
    wide: Tensor, keys: Tensor, hidden: Tensor, n: tuple[int, ...], grid: Grid, counts: tuple[int, ...], **more: object
) -> Selection:
    data = {Need.VISION_WIDE: wide, Need.VISION_KEYS: keys, Need.VISION_HIDDEN: hidden, Need.HIDDEN: hidden + 0.0}
    site = layer_site(n, {**data, Need.GRID: grid})
    strategy = PruMerge.model_validate(more)
    selection = strategy.select(site, counts_tensor(*counts))
    selection.check(n, static=counts if strategy.count_is_static else None)
    selection.check_indices(n)
    return selection


def slow(a: list[float], keys: Tensor, hidden: Tensor, plus: bool, total: int | None) -> dict[int, Tensor]:
    """Token -> its vector, for one picture; the sum of the rest at the strongest token that goes."""
    n = len(a)
    if total is not None and total >= n:
        return dict(enumerate(hidden))
    if total == 0:
        return {}
    order = sorted(range(n), key=lambda j: -a[j])
    low, high = np.percentile(np.array(a, dtype=np.float64), [25, 75])
    top = max(sum(x > high + 1.5 * (high - low) for x in a), 1)
    if total is not None:
        top = min(top, total - 1) if plus else total - 1
    chosen, grid = order[:top], []
    if plus and total is None:
        grid = [j for j in range(0, n - 1, max(n // top // 3, 1)) if j not in chosen]
    elif plus:
        rest, wanted = [j for j in range(n) if j not in chosen], total - 1 - top
        grid = [rest[next(t for t in range(n) if (t + 1) * wanted // len(rest) > g)] for g in range(wanted)]
    cosine = torch.nn.functional.cosine_similarity(keys[:, None], keys[None], dim=-1)
    found: dict[int, Tensor] = {}
    for i in chosen + grid:
        near = sorted((j for j in range(n) if j != i), key=lambda j: -float(cosine[i, j]))[:32]
        found[i] = hidden[i] + sum((a[j] * hidden[j] for j in near), torch.zeros(6))
    left = [j for j in order if j not in found]
    if left:
        found[left[0]] = sum((a[j] * hidden[j] for j in left), torch.zeros(6))
    return dict(sorted(found.items()))


@given(n=st.integers(1, 50), seed=st.integers(0, 99), plus=st.booleans(), data=st.data())
def test_equals_the_loops(n: int, seed: int, plus: bool, data: st.DataObject):
    total = data.draw(st.none() | st.integers(0, n))
    wide, keys, hidden = drawn(1, n, seed)
    budget = {} if total is None else {"keep_count": total}
    selection = select(
        wide, keys, hidden, (n,), raster_grid(1, n), (n if total is None else total,), plus=plus, **budget
    )
    expected = slow(wide[0, 0, 0].tolist(), keys[0, 0], hidden[0], plus, total)
    assert selection.kept[0].tolist() == list(expected)
    assert selection.features is not None
    if expected:
        torch.testing.assert_close(selection.features[0], torch.stack(list(expected.values())))


@pytest.mark.parametrize("more", [{}, {"plus": True}, {"plus": True, "keep_count": 9}, {"keep_count": 9}])
def test_ragged_rows_and_pictures_equal_single_ones(more: dict[str, object]):
    """Two pictures of 40 tokens in the first row, one in the second."""
    wide, keys, hidden = drawn(2, 80, 3)
    grids = [raster_grid(5, 8, 2, n=80), raster_grid(5, 8, 1, n=80)]
    grid = Grid(*(torch.cat([getattr(one, name) for one in grids]) for name in Grid.__dataclass_fields__))
    counts = (18, 9) if "keep_count" in more else (80, 40)
    together = select(wide, keys, hidden, (80, 40), grid, counts, **more)
    assert together.features is not None
    for row, start in ((0, 0), (0, 40), (1, 0)):
        part = slice(start, start + 40)
        one = wide[row, ..., part][None], keys[row, :, part][None], hidden[row, part][None]
        alone = select(*one, (40,), raster_grid(5, 8), (9 if "keep_count" in more else 40,), **more)
        slots = [slot for slot, token in enumerate(together.kept[row].tolist()) if start <= token < start + 40]
        assert (together.kept[row, slots] - start).tolist() == alone.kept[0].tolist()
        assert alone.features is not None
        torch.testing.assert_close(together.features[row, slots], alone.features[0])


def test_budget_and_parameters():
    strategy, realised = PruMerge().at_budget(PRESETS["llava-1.5-7b"], 576, layer_mean_ratio=64 / 576)
    assert realised == 64 / 576
    assert strategy.count_is_static
    assert not PruMerge().count_is_static
    assert PruMerge().schedule(PRESETS["llava-1.5-7b"], 576).count_at(0) == 576
    with pytest.raises(ValidationError, match="neither"):
        PruMerge(keep_ratio=0.5, keep_count=9)
    with pytest.raises(ValidationError, match="renumber"):
        PruMerge(order="attention")
