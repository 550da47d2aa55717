"""Sums, nearest tokens and merges against loops written from the definitions, on ragged batches."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, strategies as st

from tokentrim.contracts.toolkit import merging
from tokentrim.contracts.toolkit.merging import added, cluster_means, merge_into, most_alike, rows_at, written


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_rows_at_an_index():
    vectors = drawn(2, 3, 4, 5)
    index = torch.tensor([2, 0, 2]).expand(2, 3, 3)
    assert rows_at(vectors, index).equal(vectors[:, :, [2, 0, 2]])
    assert rows_at(vectors[0], torch.tensor([[1], [3], [-1]]))[:2, 0].equal(vectors[0, [0, 1], [1, 3]])


def test_minus_one_writes_nothing():
    over = torch.tensor([[5, 6, 7], [5, 6, 7]])
    found = written(over, torch.tensor([[2, -1], [0, 1]]), torch.tensor([[8, 9], [8, 9]]))
    assert found.tolist() == [[5, 6, 8], [8, 9, 7]]
    assert over.tolist() == [[5, 6, 7], [5, 6, 7]]


def test_sums_begin_with_what_stood_there():
    start, vectors = drawn(2, 2, 3), drawn(2, 4, 3, seed=1)
    sums, came = added(start, torch.tensor([[0, 0, -1, 1], [-1, -1, -1, 1]]), vectors)
    assert came.tolist() == [[2, 1], [0, 1]]
    torch.testing.assert_close(sums[0, 0], start[0, 0] + vectors[0, 0] + vectors[0, 1])
    assert sums[1, 0].equal(start[1, 0])
    assert added(start.half(), torch.zeros(2, 4, dtype=torch.int64), vectors.half())[0].dtype == torch.float32


def test_means_stand_at_what_stands_for_a_cluster():
    points = drawn(1, 4, 3)
    found = cluster_means(points, torch.tensor([[2, -1, 2, 3]]))[0]
    assert not found[:2].any()
    torch.testing.assert_close(found[2:], torch.stack([(points[0, 0] + points[0, 2]) / 2, points[0, 3]]))


@pytest.mark.parametrize("at_once", [1, 1 << 25])
def test_most_alike_in_its_group(monkeypatch: pytest.MonkeyPatch, at_once: int):
    monkeypatch.setattr(merging, "_AT_ONCE", at_once)
    vectors, others = drawn(2, 2, 5, 4), drawn(2, 2, 3, 4, seed=1)
    others[..., 1, :] = 2 * others[..., 0, :]  # of two copies the first
    group, groups = torch.tensor([0, 0, 1, 1, 2]).expand(2, 2, 5), torch.tensor([0, 0, 1]).expand(2, 2, 3)
    largest, whose = most_alike(vectors, others, group, groups)
    assert whose[..., :4].equal(torch.tensor([0, 0, 2, 2]).expand(2, 2, 4))
    expected = torch.cosine_similarity(vectors[..., :4, :], rows_at(others, whose[..., :4]), dim=-1)
    torch.testing.assert_close(largest[..., :4], expected)
    assert largest[..., 4].eq(-2).all()


@given(
    sizes=st.lists(st.integers(0, 9), min_size=1, max_size=3), seed=st.integers(0, 99), turned=st.booleans()
)  # fmt: skip
def test_merge_into_equals_a_loop(sizes: list[int], seed: int, turned: bool):
    width, choice = max(sizes), torch.Generator().manual_seed(seed)
    into = torch.full((len(sizes), width), -1)
    kept: list[list[int]] = []
    for row, n in enumerate(sizes):
        mine = (torch.rand(n, generator=choice) < 0.5).nonzero().flatten().tolist()
        for token in range(n):
            if token in mine:
                into[row, token] = token
            elif mine and torch.rand((), generator=choice) < 0.7:
                into[row, token] = mine[int(torch.randint(len(mine), (), generator=choice))]
        kept.append(mine[::-1] if turned else mine)
    line = -torch.arange(width).expand_as(into) if turned else None
    counts = tuple(map(len, kept))
    found = merge_into(into, counts, line, behind=counts if turned else None)
    found.check(tuple(sizes), static=counts)
    found.check_indices(tuple(sizes))
    assert [row[:n].tolist() for row, n in zip(found.kept, counts, strict=True)] == kept
    assert found.target is not None
    for row, mine in enumerate(kept):
        goes = [mine[slot] if slot >= 0 else -1 for slot in found.target[row].tolist()]
        assert goes == into[row].tolist()
