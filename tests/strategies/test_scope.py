"""``scope`` against the loop of its definition, on pictures that choose by themselves."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, strategies as st
from torch import Tensor

from tests.strategies.sites_factory import attention, counts_tensor, layer_site, raster_grid, tiled_grid
from tokentrim.contracts.selection import Selection
from tokentrim.contracts.sites import Grid, Need
from tokentrim_strategies.scope import SCOPE


def drawn(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def select(
    strategy: SCOPE, rows: Tensor, vectors: Tensor, n: tuple[int, ...], counts: tuple[int, ...], grid: Grid
) -> Selection:
    data = {Need.VISION_ROWS: rows, Need.VISION_HIDDEN: vectors, Need.GRID: grid}
    selection = strategy.select(layer_site(n, data), counts_tensor(*counts))
    selection.check(n, static=counts)
    selection.check_indices(n)
    return selection


def slow(attention: list[float], vectors: Tensor, count: int, alpha: float, add: bool) -> list[int]:
    unit = torch.nn.functional.normalize(vectors, dim=-1)
    cosine = (unit @ unit.T).tolist()
    chosen: list[int] = []
    while len(chosen) < count:
        cover = [max([0.0, *(row[k] for k in chosen)]) for row in cosine]
        gain = [sum(max(0.0, cosine[i][j] - cover[i]) for i in range(len(cosine))) for j in range(len(cosine))]
        score = [g + a**alpha if add else g * a**alpha for g, a in zip(gain, attention, strict=True)]
        chosen.append(max((j for j in range(len(cosine)) if j not in chosen), key=lambda j: score[j]))
    return sorted(chosen)


@given(n=st.integers(1, 20), seed=st.integers(0, 99), data=st.data())
def test_equals_the_loop(n: int, seed: int, data: st.DataObject):
    count, alpha, add = (
        data.draw(st.integers(0, n)),
        data.draw(st.sampled_from([0.5, 1.0, 2.0])),
        data.draw(st.booleans()),
    )
    rows, vectors = attention(1, 1, 2, n, seed=seed), drawn(1, n, 6, seed=seed)
    strategy = SCOPE(alpha=alpha, combined="add" if add else "multiply")
    kept = select(strategy, rows, vectors, (n,), (count,), raster_grid(1, n)).kept[0].tolist()
    assert kept == slow(rows[0, 0].sum(0).tolist(), vectors[0], count, alpha, add)


def test_tiles_choose_by_themselves():
    """Three tiles of 7: each covers itself, and 10 of 21 are 3, 3 and 4."""
    rows, vectors = attention(1, 1, 2, 21), drawn(1, 21, 6, seed=1)
    kept = select(SCOPE(), rows, vectors, (21,), (10,), tiled_grid(3, 7)).kept[0].tolist()
    expected: list[int] = []
    for tile, count in enumerate((3, 3, 4)):
        part = slice(7 * tile, 7 * tile + 7)
        own = slow(rows[0, 0, :, part].sum(0).tolist(), vectors[0, part], count, 1.0, False)
        expected += [7 * tile + token for token in own]
    assert kept == expected


def test_ragged_rows_equal_single_rows():
    n, counts = (20, 13, 0, 16), (9, 4, 0, 16)
    rows, vectors = attention(4, 1, 2, 20), drawn(4, 20, 6, seed=3)
    grids = [raster_grid(1, own, n=20) for own in n]
    grid = Grid(*(torch.cat(parts) for parts in zip(*(vars(one).values() for one in grids), strict=True)))
    together = select(SCOPE(), rows, vectors, n, counts, grid)
    for row, (own, count) in enumerate(zip(n, counts, strict=True)):
        if own:
            alone = (
                rows[row : row + 1, ..., :own],
                vectors[row : row + 1, :own],
                (own,),
                (count,),
                raster_grid(1, own),
            )
            assert together.kept[row, :count].tolist() == select(SCOPE(), *alone).kept[0].tolist()


@pytest.mark.parametrize(("alpha", "expected"), [(0.0, [1, 3]), (4.0, [2, 3])])
def test_by_hand(alpha: float, expected: list[int]):
    """Three alike and one across: coverage alone takes the one that leans to the other, attention another."""
    vectors = torch.tensor([[[1.0, 0.0], [1.0, 0.2], [1.0, -0.2], [0.0, 0.9]]])
    rows = torch.tensor([[[[0.1, 0.1, 0.5, 0.3]]]])
    assert select(SCOPE(alpha=alpha), rows, vectors, (4,), (2,), raster_grid(1, 4)).kept[0].tolist() == expected


def test_pictures_in_parts_are_pictures_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """One large picture beside small ones: tables in parts choose what one table chooses."""
    small, large = vars(raster_grid(2, 3, images=4)), vars(raster_grid(5, 5))
    grid = Grid(*(torch.cat([small[name], large[name] + 4 * (name == "image")], dim=1) for name in small))
    rows, vectors = attention(1, 1, 2, 49), drawn(1, 49, 6, seed=1)
    together = select(SCOPE(), rows, vectors, (49,), (20,), grid).kept
    monkeypatch.setattr("tokentrim.contracts.toolkit.clustering._PAIRS", 72)
    assert torch.equal(select(SCOPE(), rows, vectors, (49,), (20,), grid).kept, together)
