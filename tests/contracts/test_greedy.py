"""Greedy selection against loops written from the definitions, on ragged batches."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, strategies as st
from torch import Tensor

from tests.strategies.sites_factory import layer_site, raster_grid
from tokentrim.contracts.sites import Grid, Need
from tokentrim.contracts.toolkit import greedy
from tokentrim.contracts.toolkit.clustering import unit, within
from tokentrim.contracts.toolkit.greedy import (
    farthest_first,
    greedy_cover,
    greedy_diverse,
    greedy_order,
    greedy_volume,
    marked,
)
from tokentrim.contracts.toolkit.pictures import Pictures

ragged = st.lists(st.integers(0, 12), min_size=1, max_size=3)


def drawn(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def looped(count: int, n: int, gain: Callable[[int, list[int]], float]) -> list[int]:
    """The definition of all of them: the free token with the largest gain, the first of several."""
    chosen: list[int] = []
    while len(chosen) < count:
        chosen.append(max((i for i in range(n) if i not in chosen), key=lambda i: gain(i, chosen)))
    return chosen


def require_greedy(order: list[int], n: int, gain: Callable[[int, list[int]], float]) -> None:
    """The same of an order: of gains that are equal but for rounding, any may come first.

    Two tokens nearest to each other are such a pair: how ``a @ b`` and ``b @ a`` are rounded is the processor's matter.
    """
    for place, token in enumerate(order):
        chosen = order[:place]
        best = max(gain(i, chosen) for i in range(n) if i not in chosen)
        assert token not in chosen
        assert gain(token, chosen) >= best - 1e-6 * max(1.0, abs(best))


def farthest(cosine: Tensor) -> Callable[[int, list[int]], float]:
    def gain(i: int, chosen: list[int]) -> float:
        others = chosen or [j for j in range(len(cosine)) if j != i]
        return 1 - max((float(cosine[i, j]) for j in others), default=0.0)

    return gain


def covering(affinity: Tensor) -> Callable[[int, list[int]], float]:
    def gain(i: int, chosen: list[int]) -> float:
        covered = affinity[chosen].amax(dim=0).clamp(min=0) if chosen else torch.zeros(affinity.shape[1])
        return float((affinity[i] - covered).clamp(min=0).sum())

    return gain


def volume(vectors: Tensor) -> Callable[[int, list[int]], float]:
    def gain(i: int, chosen: list[int]) -> float:
        both = vectors[[*chosen, i]]
        before = torch.linalg.det(vectors[chosen] @ vectors[chosen].T) if chosen else 1.0
        return float(torch.linalg.det(both @ both.T) / before)

    return gain


@pytest.mark.parametrize("table", [4096, 3])
@given(sizes=ragged, seed=st.integers(0, 999), data=st.data())
def test_they_equal_the_loops(table: int, sizes: list[int], seed: int, data: st.DataObject):
    width = max(*sizes, 1)
    counts = [data.draw(st.integers(0, size)) for size in sizes]
    features, affinity = drawn(len(sizes), width, 16, seed=seed), drawn(len(sizes), width, 5, seed=seed)
    scores = torch.rand(len(sizes), width, generator=torch.Generator().manual_seed(seed))
    real = within(sizes, width, torch.device("cpu"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(greedy, "_TABLE", table)
        found = {
            "farthest": farthest_first(features, sizes, counts),
            "cover": greedy_cover(affinity.masked_fill(~real.unsqueeze(-1), 0.0), real, counts),
            "volume": greedy_volume(features, sizes, counts),
        }
    relevant = greedy_diverse(features, sizes, counts, lambda nearest: 0.7 * scores - 0.3 * nearest)
    for row, (size, count) in enumerate(zip(sizes, counts, strict=True)):
        own = features[row, :size]
        cosine = unit(own) @ unit(own).T
        gains = {"farthest": farthest(cosine), "cover": covering(affinity[row, :size]), "volume": volume(own)}
        for name, order in found.items():
            require_greedy(order[row].tolist()[:count], size, gains[name])
            assert set(order[row, count:].tolist()) <= {-1}

        def marginal(i: int, chosen: list[int], cosine: Tensor = cosine, row: int = row) -> float:
            return float(0.7 * scores[row, i] - 0.3 * max((float(cosine[i, j]) for j in chosen), default=-1.0))

        assert relevant[row].nonzero().flatten().tolist() == sorted(looped(count, size, marginal))


def test_by_hand():
    features = torch.tensor([[[1.0, 0.0], [1.0, 0.1], [-1.0, 0.0], [0.0, 1.0]]])
    assert greedy_diverse(features, (4,), (3,), lambda nearest: -nearest).tolist() == [[True, False, True, True]]
    assert farthest_first(features, (4,), (4,)).tolist() == [[2, 0, 3, 1]]
    assert farthest_first(features[:, :1], (1,), (1,)).tolist() == [[0]]


def test_copies_come_last_lowest_first():
    """Two directions, three times and twice: nothing is chosen twice, and what has nothing to add comes in order."""
    features = torch.tensor([[[1.0, 2.0, 3.0]] * 3 + [[-3.0, 1.0, 0.5]] * 2])
    assert farthest_first(features, (5,), (5,)).tolist() == [[0, 3, 1, 2, 4]]
    assert greedy_volume(features, (5,), (5,)).tolist() == [[0, 3, 1, 2, 4]]
    cosine = unit(features) @ unit(features).transpose(1, 2)
    assert greedy_cover(cosine, torch.ones(1, 5, dtype=torch.bool), (5,)).tolist() == [[0, 3, 1, 2, 4]]


def test_the_first_of_equal_gains_in_long_rows():
    free = torch.ones(2, 5000, dtype=torch.bool)
    free[1, :1000] = False
    order = greedy_order(torch.zeros(2, 5000), lambda same: same, lambda same, pick: same, free, (3, 2))
    assert order.tolist() == [[0, 1, 2], [1000, 1001, -1]]
    assert marked(order, 5000).sum(dim=1).tolist() == [3, 2]


# ---------------------------------------------------------------------- pictures


def test_pictures_of_a_batch():
    """A row of two images of 2 x 2 and a token without place, and a row of one image."""
    both, one = raster_grid(2, 2, images=2, n=9), raster_grid(2, 2, n=9)
    grid = Grid(*(torch.cat(parts) for parts in zip(vars(both).values(), vars(one).values(), strict=True)))
    pictures = Pictures.of(layer_site((9, 4), {Need.GRID: grid}))
    assert (pictures.rows, pictures.sizes) == ((0, 0, 0, 1), (4, 4, 1, 4))
    number = torch.arange(18).view(2, 9)
    assert pictures.split(number).tolist() == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 0, 0, 0], [9, 10, 11, 12]]
    assert pictures.shares((6, 3)) == (2, 3, 1, 3)
    order = torch.tensor([[3, 1], [0, -1], [0, -1], [2, 3]])
    assert pictures.joined(order).nonzero().tolist() == [[0, 1], [0, 3], [0, 4], [0, 8], [1, 2], [1, 3]]


@given(sizes=st.lists(st.integers(0, 700), min_size=1, max_size=6), share=st.floats(0, 1))
def test_shares_add_up(sizes: list[int], share: float):
    total = sum(sizes)
    count = int(share * total)
    found = Pictures((0,) * len(sizes), tuple(sizes), (0,) * len(sizes), (0,) * len(sizes), None, total, 1).shares(
        (count,)
    )
    assert sum(found) == count
    assert all(0 <= kept <= size for kept, size in zip(found, sizes, strict=True))
