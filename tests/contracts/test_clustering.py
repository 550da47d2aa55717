"""Shared arithmetic against loops written from the definitions, on ragged batches."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import Tensor

from tokentrim.contracts.toolkit.clustering import (
    connected,
    density_peaks,
    first_argmax,
    thin_similar,
    unit,
    within,
)

Rows = list[list[float]]
ragged = st.lists(st.integers(0, 14), min_size=1, max_size=3)


def drawn(rows: int, width: int, size: int, seed: int) -> Tensor:
    return torch.randn(rows, width, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def dot(x: list[float], y: list[float]) -> float:
    return sum(a * b for a, b in zip(x, y, strict=True))


def cosine(x: list[float], y: list[float]) -> float:
    return dot(x, y) / math.sqrt(dot(x, x) * dot(y, y))


# ---------------------------------------------------------------------- small ones


def test_within():
    assert within((2, 0), 3, torch.device("cpu")).tolist() == [[True, True, False], [False] * 3]


def test_unit_vectors():
    found = unit(torch.tensor([[3.0, 4.0], [0.0, 0.0]], dtype=torch.float16))
    assert found.dtype == torch.float32
    assert found.tolist() == [[pytest.approx(0.6), pytest.approx(0.8)], [0.0, 0.0]]


def test_the_first_of_the_largest():
    assert first_argmax(torch.tensor([[1.0, 5.0, 5.0], [-1.0, -1.0, -2.0]])).tolist() == [1, 0]
    assert first_argmax(torch.full((2, 3), float("-inf"))).tolist() == [0, 0]


# ---------------------------------------------------------------------- density peaks


def slow_peaks(points: Rows, clusters: int, k: int, noise: list[float], near: Callable[..., float]) -> list[list[int]]:
    """The centre of each point, and the centres."""
    n = len(points)
    d = [[math.dist(x, y) / math.sqrt(len(x)) for y in points] for x in points]
    rho = [(math.exp(-sum(v * v for v in sorted(row)[:k]) / k), noise[i]) for i, row in enumerate(d)]
    largest = max((max(row) for row in d), default=0.0)
    delta = [min((d[i][j] for j in range(n) if rho[j] > rho[i]), default=largest) for i in range(n)]
    centres = sorted(range(n), key=lambda i: (-rho[i][0] * delta[i], -noise[i]))[:clusters]
    own = [max(sorted(centres), key=lambda c: near(points[i], points[c])) for i in range(n)]
    return [[i if i in centres else own[i] for i in range(n)], centres]


@given(sizes=ragged, seed=st.integers(0, 999), data=st.data())
def test_density_peaks_equal_the_loop(sizes: list[int], seed: int, data: st.DataObject):
    width = max(*sizes, 1)
    points = drawn(len(sizes), width, 3, seed)
    noise = torch.rand(len(sizes), width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    clusters = [data.draw(st.integers(min(size, 1), size)) for size in sizes]
    neighbours = [data.draw(st.integers(min(size, 1), size)) for size in sizes]
    for assign, near in (("distance", lambda x, y: -math.dist(x, y)), ("cosine", cosine)):
        found, best = density_peaks(points, sizes, clusters, neighbours, noise, assign=assign)
        for row, size in enumerate(sizes):
            args = clusters[row], neighbours[row], noise[row, :size].tolist()
            own, centres = slow_peaks(points[row, :size].tolist(), *args, near)
            assert found[row, :size].tolist() == own
            assert best[row, : clusters[row]].tolist() == centres
            assert {*found[row, size:].tolist(), *best[row, clusters[row] :].tolist()} <= {-1}


def test_two_heaps_are_two_clusters():
    """Golden: the densest point of each heap is its centre."""
    points = torch.tensor([[[0.0, 0.0], [0.1, 0.0], [0.2, 0.0], [9.0, 9.0], [9.1, 9.0], [9.2, 9.0]]])
    found, _ = density_peaks(points, (6,), (2,), (3,), torch.zeros(1, 6))
    assert found.tolist() == [[1, 1, 1, 4, 4, 4]]


def test_noise_parts_equal_points_and_nothing_else():
    points = torch.zeros(1, 4, 2)
    noise = torch.tensor([[0.1, 0.9, 0.3, 0.2]])
    assert density_peaks(points, (4,), (1,), (2,), noise)[0].tolist() == [[1] * 4]
    pair = torch.tensor([[[0.0], [1.0]]])
    assert density_peaks(pair, (2,), (1,), (1,), torch.tensor([[0.2, 0.8]]))[0].tolist() == [[1, 1]]
    assert density_peaks(pair, (2,), (1,), (1,), torch.tensor([[0.8, 0.2]]))[0].tolist() == [[0, 0]]


# ---------------------------------------------------------------------- thinning


def slow_thin(features: Rows, order: list[int], keep: int, step: int) -> list[int]:
    while len(order) > keep:
        a, b = order[::2], order[1::2]
        similar = {i: max((cosine(features[i], features[j]) for j in b), default=-2.0) for i in a}
        ranked = sorted(a, key=lambda i: -similar[i])
        order = ranked[min(step, len(order) - keep, len(a)) :] + b
    return order


@settings(max_examples=60)
@given(sizes=ragged, step=st.integers(1, 9), seed=st.integers(0, 999), data=st.data())
def test_thinning_equals_the_loop(sizes: list[int], step: int, seed: int, data: st.DataObject):
    width = max(*sizes, 1)
    features = drawn(len(sizes), width, 4, seed)
    keep = [data.draw(st.integers(0, size)) for size in sizes]
    order = torch.stack([torch.tensor(data.draw(st.permutations(range(width)))) for _ in sizes])
    order = torch.where(order < torch.tensor(sizes).unsqueeze(1), order, width)  # each row lists its own tokens first
    order = torch.stack([torch.cat([row[row < width], row.new_zeros(int((row == width).sum()))]) for row in order])
    found = thin_similar(features, order, sizes, keep, step)
    assert found.shape == (len(sizes), max(keep))
    for row, size in enumerate(sizes):
        expected = slow_thin(features[row].tolist(), order[row, :size].tolist(), keep[row], step)
        assert sorted(found[row, : keep[row]].tolist()) == sorted(expected)
        assert set(found[row, keep[row] :].tolist()) <= {-1}


def test_thinning_by_hand():
    """0 and 1 are the same direction, 2 and 3 nearly: of the first half (0, 2, 4), 0 goes first, then 2."""
    features = torch.tensor([[[1.0, 0.0], [2.0, 0.0], [0.0, 1.0], [0.1, 1.0], [-1.0, -1.0]]])
    order = torch.arange(5).unsqueeze(0)
    assert sorted(thin_similar(features, order, (5,), (4,), 1)[0].tolist()) == [1, 2, 3, 4]
    assert sorted(thin_similar(features, order, (5,), (3,), 2)[0].tolist()) == [1, 3, 4]


# ---------------------------------------------------------------------- components


def components(edges: list[list[bool]]) -> list[int]:
    label = [-1] * len(edges)
    for start in range(len(edges)):
        reached = [start] if label[start] < 0 else []
        while reached:
            node = reached.pop()
            label[node] = start
            reached += [other for other, edge in enumerate(edges[node]) if edge and label[other] < 0]
    return label


@given(n=st.integers(1, 24), share=st.sampled_from([0.0, 0.04, 0.08, 0.15, 1.0]), seed=st.integers(0, 200))
def test_connected_equals_a_search(n: int, share: float, seed: int):
    edges = torch.rand(2, n, n, generator=torch.Generator().manual_seed(seed)) < share
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    edges[1] = False
    edges[1, order[:-1], order[1:]] = True  # one long chain
    edges = edges | edges.transpose(1, 2)
    assert connected(edges).tolist() == [components(row.tolist()) for row in edges]
