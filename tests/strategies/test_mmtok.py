"""``mmtok`` against the loop of its definition, on tiles, ragged rows, padding and skipped words."""

from __future__ import annotations

from typing import Any

import torch
from hypothesis import given, strategies as st
from torch import Tensor

from tests.strategies.sites_factory import counts_tensor, layer_site, raster_grid, tiled_grid
from tokentrim.contracts.selection import Selection
from tokentrim.contracts.sites import Grid, Need
from tokentrim_strategies.mmtok import MMTok


def drawn(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def select(
    inputs: tuple[Tensor, Tensor, Tensor], ids: list[list[int]], n: tuple[int, ...], counts: tuple[int, ...],
    grid: Grid, **parameters: Any,
) -> Selection:  # fmt: skip
    """``inputs``: features, vectors, text; ``ids``: of every text token, -1 in padding; the first is not behind."""
    features, vectors, text = inputs
    numbers = torch.tensor(ids)
    said = ("", "where ", "ca", "t", " is", "?", "dog")  # what token number i says

    def spelled(chosen: Tensor) -> tuple[tuple[str, ...], ...]:
        return tuple(tuple(said[i] for i in row[own].tolist()) for row, own in zip(numbers, chosen, strict=True))

    behind = (numbers >= 0) & (torch.arange(numbers.shape[1]) > 0)
    data = {
        Need.FEATURES: features,
        Need.VISION_HIDDEN: vectors,
        Need.TEXT_EMBEDS: (text, numbers >= 0),
        Need.TEXT_IDS: (numbers, numbers >= 0, behind),
        Need.TEXT: spelled,
        Need.GRID: grid,
    }
    selection = MMTok(**parameters).select(layer_site(n, data), counts_tensor(*counts))
    selection.check(n, static=counts)
    selection.check_indices(n)
    return selection


def slow(features: Tensor, vectors: Tensor, text: Tensor, count: int, alpha: float = 0.5) -> list[int]:
    x, u, t = (torch.nn.functional.normalize(one, dim=-1) for one in (features, vectors, text))
    words = torch.softmax(t @ x.T / 0.02, dim=1) / max(len(t), 1)
    rows = torch.cat([words, alpha * torch.softmax(u @ u.T / 0.2, dim=1) / len(u)]).tolist()
    cover, chosen = [0.0] * len(rows), list[int]()
    while len(chosen) < count:
        gain = [sum(max(0.0, row[j] - c) for row, c in zip(rows, cover, strict=True)) for j in range(len(x))]
        chosen.append(max((j for j in range(len(x)) if j not in chosen), key=lambda j: gain[j]))
        cover = [max(c, row[chosen[-1]]) for row, c in zip(rows, cover, strict=True)]
    return sorted(chosen)


@given(n=st.integers(1, 16), seed=st.integers(0, 99), data=st.data())
def test_equals_the_loop(n: int, seed: int, data: st.DataObject):
    count, alpha = data.draw(st.integers(0, n)), data.draw(st.sampled_from([0.1, 0.5, 2.0]))
    inputs = (drawn(1, n, 6, seed=seed), drawn(1, n, 5, seed=seed + 1), drawn(1, 4, 6, seed=seed + 2))
    kept = select(inputs, [[7, 8, 9, 7]], (n,), (count,), raster_grid(1, n), alpha=alpha).kept[0].tolist()
    assert kept == slow(inputs[0][0], inputs[1][0], inputs[2][0, 1:], count, alpha)


def test_keywords_and_tiles():
    inputs = (drawn(1, 12, 6, seed=0), drawn(1, 12, 5, seed=1), drawn(1, 5, 6, seed=2))
    for ids, words in (([6, 1, 2, 3, 4], [2, 3]), ([6, 1, 4, 5, 5], [1, 2, 3, 4])):  # where none is left, all count
        kept = select(inputs, [ids], (12,), (6,), tiled_grid(2, 6), keywords=True).kept[0].tolist()
        parts = [slow(*(x[0, 6 * t : 6 * t + 6] for x in inputs[:2]), inputs[2][0, words], 3) for t in (0, 1)]
        assert kept == parts[0] + [6 + token for token in parts[1]]


def test_ragged_rows_equal_single_rows():
    n, counts, ids = (15, 9, 0, 12), (6, 3, 0, 5), [[4, 5, 6], [4, -1, -1], [4, 5, 6], [-1, -1, -1]]
    inputs = (drawn(4, 15, 6, seed=3), drawn(4, 15, 5, seed=4), drawn(4, 3, 6, seed=5))
    grids = [raster_grid(1, own, n=15) for own in n]
    grid = Grid(*(torch.cat(parts) for parts in zip(*(vars(one).values() for one in grids), strict=True)))
    together = select(inputs, ids, n, counts, grid)
    for row, (own, count) in enumerate(zip(n, counts, strict=True)):
        if own:
            real = [one for one in ids[row] if one >= 0]
            features, vectors, text = (x[row : row + 1] for x in inputs)
            alone = (features[:, :own], vectors[:, :own], text[:, : len(real)])
            kept = select(alone, [real], (own,), (count,), raster_grid(1, own)).kept[0].tolist()
            assert together.kept[row, :count].tolist() == kept


def test_padding_comes_last():
    """A picture twice as high as wide, in a square of 4 x 4: the outer columns are empty."""
    inputs = (drawn(1, 16, 6, seed=0), drawn(1, 16, 5, seed=1), drawn(1, 2, 6, seed=2))
    inner = [token for token in range(16) if token % 4 in (1, 2)]
    for count in (5, 8, 11):
        kept = select(inputs, [[3, 9]], (16,), (count,), raster_grid(4, 4), picture=(10, 20)).kept[0].tolist()
        assert set(kept) <= set(inner) if count <= 8 else set(kept) > set(inner)
