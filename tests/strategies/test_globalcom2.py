"""``globalcom2`` against its definition, one tile after the other."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, strategies as st
from torch import Tensor
from torch.nn.functional import interpolate, normalize, pad

from tests.strategies.golden.globalcom2 import tiled
from tests.strategies.sites_factory import counts_tensor, layer_site, raster_grid
from tokentrim.contracts.selection import Selection
from tokentrim.contracts.sites import Grid, Need
from tokentrim.counting.published import PRESETS
from tokentrim_strategies.globalcom2 import GlobalCom2


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def select(scores: Tensor, grid: Grid, n: tuple[int, ...], counts: tuple[int, ...], total: str = "exact") -> Selection:
    strategy = GlobalCom2.model_validate({"keep_ratio": 0.3, "total": total})
    site = layer_site(n, {Need.VISION_LOGITS: scores[:, None, None], Need.GRID: grid})
    selection = strategy.select(site, counts_tensor(*counts))
    selection.check(n, static=counts if total == "exact" else None)
    selection.check_indices(n)
    return selection


def slow(scores: Tensor, grid: Grid, side: int, down: int, across: int, ratio: float, count: int | None) -> list[int]:
    """Token numbers of one tiled image; ``count`` None: as rounding leaves them."""
    tile, rows, cols = grid.tile[0], int(grid.rows[0, -1]), int(grid.cols[0, -1])
    thumbnail = scores[: side * side].view(side, side)
    height, width = side // down, side // across
    masses: list[float] = []
    for y in range(down):
        for x in range(across):
            bottom = side if y == down - 1 else (y + 1) * height
            right = side if x == across - 1 else (x + 1) * width
            masses.append(float(thumbnail[y * height : bottom, x * width : right].double().sum()) / 10)
    bonus = torch.softmax(torch.tensor(masses, dtype=torch.float64), dim=0).tolist()
    shares = [ratio, *(min(1.0, ratio * (1 + p - 1 / len(masses))) for p in bonus)]
    guide = torch.cat(
        [torch.zeros(side * side), interpolate(thumbnail[None, None], (rows, cols), mode="bilinear").flatten()]
    )
    asked: list[tuple[float, int]] = []
    for number, share in enumerate(shares):
        mine = (tile == number).nonzero().flatten()
        value = scores[mine] if not number else normalize(scores[mine], dim=0) + normalize(guide[mine], dim=0)
        ranked = mine[value.argsort(descending=True, stable=True)].tolist()
        room = share * len(ranked)
        asked += [
            ((rank + 1) / room, token)
            for rank, token in enumerate(ranked)
            if count is not None or rank < math.floor(room)
        ]
    return sorted(token for _, token in sorted(asked)[:count])


@given(
    shape=st.sampled_from([((2, 2), (640, 640)), ((2, 2), (500, 610)), ((1, 2), (250, 600)), ((3, 1), (1000, 330))]),
    side=st.integers(4, 7), seed=st.integers(0, 99), share=st.floats(0, 1),
)  # fmt: skip
def test_equals_the_loop(shape: tuple[tuple[int, int], tuple[int, int]], side: int, seed: int, share: float):
    tiles, size = shape
    grid, numbers = tiled(side, *tiles, *size)
    n = len(numbers)
    scores, count = drawn(1, n, seed=seed), int(share * n)
    expected = slow(scores[0], grid, side, *tiles, count / n, count) if count else []
    assert select(scores, grid, (n,), (count,)).kept[0].tolist() == expected
    found = select(scores, grid, (n,), (n,), "released").kept[0].tolist()
    assert found == slow(scores[0], grid, side, *tiles, 0.3, None)


@pytest.mark.parametrize("total", ["exact", "released"])
def test_a_plain_image_keeps_its_best_and_ragged_rows_equal_single_rows(total: str):
    """Two plain images, a tiled one, nothing, and a plain one with a tiled one."""
    plain, (tiles, _) = raster_grid(4, 4, images=2), tiled(4, 1, 2, 336, 600)
    length = tiles.row.shape[1]
    both = Grid(*(torch.cat([a[:, :16], b + (name == "image")], dim=1) for (name, a), b in
                  zip(vars(plain).items(), vars(tiles).values(), strict=True)))  # fmt: skip
    grids = [plain, tiles, Grid(*[torch.zeros(1, 0, dtype=torch.int64)] * 8), both]
    n = (32, length, 0, 16 + length)
    counts = (9, 13, 0, 20)
    columns = zip(*(vars(grid).values() for grid in grids), strict=True)
    grid = Grid(*(torch.cat([pad(one, (0, max(n) - one.shape[1]), value=-1) for one in parts]) for parts in columns))
    scores = drawn(4, max(n))
    together = select(scores, grid, n, counts, total)
    for row, own in enumerate(n):
        if own:
            single = select(scores[row : row + 1, :own], grids[row], (own,), (counts[row],), total)
            assert together.kept[row, : together.counts[row]].tolist() == single.kept[0].tolist()
    share = {"exact": 9, "released": 2 * math.floor(0.3 * 16)}[total]
    kept = together.kept[0, : together.counts[0]]
    assert len(kept) == share
    for image in (0, 16):
        mine = kept[(kept >= image) & (kept < image + 16)] - image
        assert mine.tolist() == sorted(scores[0, image : image + 16].argsort(descending=True)[: len(mine)].tolist())


def test_plans():
    """Released counts depend on the tiles: at most twice what was asked for."""
    shape = PRESETS["llava-1.5-7b"]
    assert GlobalCom2().schedule(shape, 2880).count_at(0) == 720
    assert GlobalCom2(total="released").schedule(shape, 2880).count_at(0) == 1441
    assert GlobalCom2(total="released", keep_ratio=0.9).schedule(shape, 2880).count_at(0) == 2880
