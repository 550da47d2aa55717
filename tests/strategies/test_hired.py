"""``hired`` against the loops of its definition, on thumbnails and tiles that lie interleaved in an assembled plane."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, strategies as st
from torch import Tensor

from tests.strategies.sites_factory import attention, counts_tensor, layer_site
from tokentrim.contracts.selection import Selection
from tokentrim.contracts.sites import Grid, Need
from tokentrim_strategies.hired import HiRED

SIDE = 4


def tiled(rows: int, cols: int, images: int = 1) -> Tensor:
    """int64 [8, N]: a thumbnail of 4 x 4 tokens and the plane of rows x cols tiles, the last token row cut off."""
    height, width = max(rows * SIDE - 1, 0), cols * SIDE
    thumbnail = torch.arange(SIDE * SIDE)
    plane = torch.arange(height * width)
    y, x = plane // width, plane % width
    zero, one = torch.zeros_like(thumbnail), torch.ones_like(plane)
    first = [zero, zero, zero, thumbnail // SIDE, thumbnail % SIDE, zero + SIDE, zero + SIDE]
    second = [0 * one, one, 1 + y // SIDE * cols + x // SIDE, y, x, height * one, width * one]
    place = torch.stack([torch.cat(pair) for pair in zip(first, second, strict=True)])
    n = place.shape[1]
    number = torch.arange(images).repeat_interleave(n)
    return torch.cat([number.unsqueeze(0), place.repeat(1, images)])


def select(rows: Tensor, columns: Tensor, n: tuple[int, ...], counts: tuple[int, ...], **more: object) -> Selection:
    site = layer_site(n, {Need.VISION_ROWS: rows, Need.GRID: Grid(*columns)})
    strategy = HiRED.model_validate(more)
    selection = strategy.select(site, counts_tensor(*counts))
    selection.check(n, static=counts if strategy.count_is_static else None, limit=counts)
    selection.check_indices(n)
    return selection


def slow(a: list[float], c: list[float], tile: list[int], total: int, alpha: float, exact: bool) -> list[int]:
    n, number = tile.count(0), max(tile)
    order = sorted(range(len(a)), key=lambda j: -a[j])
    quota = {0: min(math.floor(total * alpha), n) if number else total}
    wanted = math.floor((1 - alpha) * n)
    strong = sorted(range(n), key=lambda j: -c[j])[:wanted]
    for k in range(1, number + 1):
        inside = sum(j * number // n == k - 1 for j in strong)
        quota[k] = int(torch.tensor(inside) / wanted * (total - quota[0])) if wanted else 0
    kept = [j for k in quota for j in [j for j in order if tile[j] == k][: quota[k]]]
    spare = [j for j in order if j not in kept]
    return sorted(kept + spare[: total - len(kept)] if exact else kept)


@given(
    rows=st.integers(0, 3), cols=st.integers(1, 3), seed=st.integers(0, 99),
    alpha=st.sampled_from([0.0, 0.3, 0.5, 1.0]), exact=st.booleans(), data=st.data(),
)  # fmt: skip
def test_equals_the_loops(rows: int, cols: int, seed: int, alpha: float, exact: bool, data: st.DataObject):
    columns = tiled(rows, cols)
    n = columns.shape[1]
    total, looks = data.draw(st.integers(0, n)), attention(1, 2, 2, n, seed=seed)
    more = {"alpha": alpha, "total": "exact" if exact else "released"}
    selection = select(looks, columns.unsqueeze(1), (n,), (total,), **more)
    a, c = looks[0].sum(dim=1).tolist()
    kept = selection.kept[0, : selection.counts[0]].tolist()
    assert kept == slow(a, c, columns[3].tolist(), total, alpha, exact)


@pytest.mark.parametrize("total", ["exact", "released"])
def test_ragged_rows_and_images_equal_single_ones(total: str):
    """Two images in the first row, one in the second, an untiled one in the third."""
    two, one, plain = tiled(2, 2, 2), tiled(2, 2), tiled(0, 1)
    n = tuple(columns.shape[1] for columns in (two, one, plain))
    looks = attention(3, 2, 2, n[0], seed=5)
    columns = torch.stack(
        [torch.nn.functional.pad(each, (0, n[0] - each.shape[1]), value=-1) for each in (two, one, plain)], 1
    )
    together = select(looks, columns, n, (60, 25, 7), total=total)
    single = [
        select(
            looks[row : row + 1, ..., start : start + len(place[0])],
            place.unsqueeze(1),
            (len(place[0]),),
            (count,),
            total="released",
        )
        for row, start, place, count in ((0, 0, one, 30), (0, n[1], one, 30), (1, 0, one, 25), (2, 0, plain, 7))
    ]
    left, right = (one.kept[0].tolist() for one in single[:2])
    expected = [left + [n[1] + token for token in right], *(one.kept[0].tolist() for one in single[2:])]
    for row, tokens in enumerate(expected):
        kept = together.kept[row, : together.counts[row]].tolist()
        assert kept == tokens if total == "released" else set(tokens) <= set(kept)


def test_blocks():
    assert HiRED().wants_vision_blocks(-2) == (-2, 0)
    assert HiRED(block=1).wants_vision_blocks(-2) == (1, 0)
