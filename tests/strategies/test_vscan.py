"""``vscan``: both stages against the loops of their definition."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, strategies as st
from pydantic import ValidationError
from torch import Tensor

from tests.strategies.sites_factory import attention, counts_tensor, layer_site, model_shape, raster_grid
from tokentrim.contracts.selection import Selection
from tokentrim.contracts.sites import Grid, Need
from tokentrim_strategies.vscan import VScan


def select(
    rows: Tensor, hidden: Tensor, grid: Grid, n: tuple[int, ...], counts: tuple[int, ...], **more: object
) -> Selection:
    strategy = VScan.model_validate(more)
    site = layer_site(n, {Need.VISION_ROWS: rows, Need.HIDDEN: hidden, Need.GRID: grid})
    selection = strategy.select(site, counts_tensor(*counts))
    selection.check(n, static=counts if strategy.count_is_static else None, limit=counts)
    selection.check_indices(n)
    return selection


def slow(a: list[float], b: list[float], hidden: Tensor, rows: int, cols: int, total: int, even: bool, exact: bool):
    """(kept tokens, the place in them that each token goes to) of one picture."""
    n, half = rows * cols, total // 2
    r, c = (min(rows, 4), min(cols, 4)) if even else (max(rows // 4, 1), max(cols // 4, 1))
    window = [
        (y * r // rows, x * c // cols) if even else (min(y // 4, r - 1), min(x // 4, c - 1))
        for y in range(rows)
        for x in range(cols)
    ]
    room = {where: half // (r * c) if even else math.ceil(half / (r * c)) for where in window}
    local: list[int] = []
    for j in sorted(range(n), key=lambda j: -a[j]):
        if room[window[j]] and len(local) < half:
            room[window[j]] -= 1
            local.append(j)
    rest = sorted({*range(n)} - {*local}, key=lambda j: -b[j])
    kept = sorted(local + rest[: total - (len(local) if exact else half)])
    if not kept:
        return kept, [-1] * n
    cosine = torch.nn.functional.cosine_similarity(hidden[:, None], hidden[kept][None], dim=-1)
    return kept, [kept.index(j) if j in kept else int(cosine[j].argmax()) for j in range(n)]


@given(
    rows=st.integers(1, 9), cols=st.integers(1, 9), seed=st.integers(0, 99), even=st.booleans(), exact=st.booleans(),
    data=st.data(),
)  # fmt: skip
def test_the_first_stage_equals_the_loops(
    rows: int, cols: int, seed: int, even: bool, exact: bool, data: st.DataObject
):
    n = rows * cols
    total, looks = data.draw(st.integers(0, n)), attention(1, 2, 3, n, seed=seed)
    hidden = torch.randn(1, n, 5, generator=torch.Generator().manual_seed(seed))
    more = {"windows": "even" if even else "capped", "total": "exact" if exact else "released"}
    selection = select(looks, hidden, raster_grid(rows, cols), (n,), (total,), **more)
    a, b = looks[0].mean(dim=1).tolist()
    kept, target = slow(a, b, hidden[0], rows, cols, total, even, exact)
    assert selection.kept[0].tolist() == kept
    assert selection.target is not None
    assert selection.target[0].tolist() == target


@pytest.mark.parametrize("windows", ["even", "capped"])
def test_ragged_rows_and_pictures_equal_single_ones(windows: str):
    looks, hidden = attention(2, 2, 2, 80, seed=2), torch.randn(2, 80, 5, generator=torch.Generator().manual_seed(1))
    grids, one = [raster_grid(5, 8, 2, n=80), raster_grid(5, 8, 1, n=80)], raster_grid(5, 8)
    grid = Grid(*(torch.cat([getattr(each, name) for each in grids]) for name in Grid.__dataclass_fields__))
    together = select(looks, hidden, grid, (80, 40), (34, 17), windows=windows)
    assert together.target is not None
    for row, start, slots in ((0, 0, slice(0, 17)), (0, 40, slice(17, 34)), (1, 0, slice(0, 17))):
        part = slice(start, start + 40)
        alone = select(looks[row, ..., part][None], hidden[row, part][None], one, (40,), (17,), windows=windows)
        assert (together.kept[row, slots] - start).tolist() == alone.kept[0].tolist()
        assert alone.target is not None
        assert (together.target[row, part] - slots.start).tolist() == alone.target[0].tolist()


@pytest.mark.parametrize(("row", "need"), [("own", Need.NEXT_ROW), ("plain", Need.NEXT_ROW_PLAIN)])
def test_the_later_stage_keeps_what_the_question_looks_at(row: str, need: Need):
    looks, strategy = attention(2, 3, 9), VScan.model_validate({"row": row})
    site = layer_site((9, 6), {need: looks}, boundary=16)
    selection = strategy.select(site, counts_tensor(3, 2))
    for number, (n, count) in enumerate(((9, 3), (6, 2))):
        best = looks[number, :, :n].mean(dim=0).argsort(descending=True)[:count]
        assert selection.kept[number, :count].tolist() == sorted(best.tolist())


def test_counts():
    """288 of 576 tokens, then 96: 192 in the mean of all layers, as published."""
    shape = model_shape(32, (24, 24))
    assert VScan(keep_count=288).schedule(shape, 576).steps == ((0, 288), (16, 96))
    assert VScan(keep_count=96, late_counts=(30,)).schedule(shape, 576).steps == ((0, 96), (16, 30))
    assert VScan(keep_ratio=0.167, late_ratio=0.333).schedule(model_shape(28), 1000).steps == ((0, 167), (14, 55))
    strategy, realised = VScan().at_budget(shape, 576, layer_mean_ratio=192 / 576)
    assert realised == 192 / 576
    assert strategy.label() == "vscan(keep_ratio=0.5)"
    released = VScan(keep_count=50, total="released")
    site = layer_site((41,), {Need.NEXT_ROW: attention(1, 2, 41)}, boundary=16)
    assert not released.count_is_static
    assert released.select(site, counts_tensor(16)).counts == (13,)
    assert VScan().vision_blocks_of(-2, 24) == (5, -2)
    assert VScan().vision_blocks_of(-1, 32) == (7, -1)
    with pytest.raises(ValidationError, match="late_counts"):
        VScan(late_counts=(30,), late_ratio=0.5)
    with pytest.raises(ValidationError, match="one for each cut"):
        VScan(late_counts=(30, 20))
