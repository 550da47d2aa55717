"""``hiprune`` against the loops of its definition, at the borders of the grid and in several pictures."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, strategies as st
from torch import Tensor

from tests.strategies.sites_factory import attention, counts_tensor, layer_site, raster_grid
from tokentrim.contracts.selection import Selection
from tokentrim.contracts.sites import Grid, Need
from tokentrim_strategies.hiprune import HiPrune


def select(columns: Tensor, grid: Grid, n: tuple[int, ...], counts: tuple[int, ...], **more: object) -> Selection:
    site = layer_site(n, {Need.VISION_COLUMNS: columns, Need.GRID: grid})
    selection = HiPrune.model_validate(more).select(site, counts_tensor(*counts))
    selection.check(n, static=counts)
    selection.check_indices(n)
    return selection


def slow(
    middle: list[float], deep: list[float], rows: int, cols: int, total: int, alpha: float, clip: bool
) -> list[int]:
    n = rows * cols
    anchors = sorted(range(n), key=lambda j: -middle[j])[: round(alpha * total / 5)]
    around: set[int] = set()
    for j in anchors:
        if clip:
            y, x = divmod(j, cols)
            near = [(y, x - 1), (y, x + 1), (y - 1, x), (y + 1, x)]
            around |= {a * cols + b for a, b in near if 0 <= a < rows and 0 <= b < cols}
        else:
            around |= {min(max(k, 0), n - 1) for k in (j - 1, j + 1, j - cols, j + cols)}
    kept = anchors + sorted(around - {*anchors}, key=lambda j: -deep[j])
    kept += sorted({*range(n)} - {*kept}, key=lambda j: -deep[j])
    return sorted(kept[:total])


@given(
    rows=st.integers(1, 5), cols=st.integers(1, 5), seed=st.integers(0, 99),
    alpha=st.sampled_from([0.0, 0.1, 0.5, 1.0]), clip=st.booleans(), data=st.data(),
)  # fmt: skip
def test_equals_the_loops(rows: int, cols: int, seed: int, alpha: float, clip: bool, data: st.DataObject):
    n = rows * cols
    total, columns = data.draw(st.integers(0, n)), attention(1, 2, 3, n, seed=seed)
    more = {"alpha": alpha, "borders": "clipped" if clip else "released"}
    kept = select(columns, raster_grid(rows, cols), (n,), (total,), **more).kept[0].tolist()
    assert kept == slow(*columns[0].mean(dim=1).tolist(), rows, cols, total, alpha, clip)


@pytest.mark.parametrize("borders", ["released", "clipped"])
def test_ragged_rows_and_pictures_equal_single_ones(borders: str):
    columns, one = attention(2, 2, 2, 40, seed=2), raster_grid(4, 5)
    grids = [raster_grid(4, 5, 2, n=40), raster_grid(4, 5, 1, n=40)]
    grid = Grid(*(torch.cat([getattr(each, name) for each in grids]) for name in Grid.__dataclass_fields__))
    together = select(columns, grid, (40, 20), (22, 11), alpha=0.5, borders=borders)
    parts = [columns[:1, ..., :20], columns[:1, ..., 20:], columns[1:, ..., :20]]
    left, right, other = (
        select(part, one, (20,), (11,), alpha=0.5, borders=borders).kept[0].tolist() for part in parts
    )
    assert together.kept[0].tolist() == left + [20 + token for token in right]
    assert together.kept[1, :11].tolist() == other


def test_blocks():
    assert HiPrune().vision_blocks_of(-2, 24) == (8, -2)
    assert HiPrune(middle=15).vision_blocks_of(-1, 32) == (15, -1)
    assert HiPrune(deep=-3).vision_blocks_of(-2, 2) == (0, -3)
