"""``scissor``: connected components against a search, the whole against the loop of its definition."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, strategies as st
from torch import Tensor

from tests.strategies.sites_factory import counts_tensor, layer_site, video_grid
from tokentrim import connected
from tokentrim.contracts.selection import Selection
from tokentrim.contracts.sites import Grid, Need
from tokentrim_strategies.scissor import Scissor


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def joined(vectors: Tensor, tau: float) -> tuple[list[int], Tensor]:
    """The node that stands for each component, ascending, and the components' means."""
    cosine = torch.cosine_similarity(vectors.unsqueeze(0), vectors.unsqueeze(1), dim=-1)
    edges = cosine > tau
    label = connected(edges.unsqueeze(0))[0].tolist()
    found: list[tuple[int, Tensor]] = []
    for one in sorted(set(label)):
        members = [i for i, own in enumerate(label) if own == one]
        stands = max(members, key=lambda i: (int(edges[i].sum()), -i))
        found.append((stands, vectors[members].mean(dim=0)))
    found.sort(key=lambda pair: pair[0])
    return [stands for stands, _ in found], torch.stack([mean for _, mean in found])


def slow(features: Tensor, tau: float) -> tuple[list[int], Tensor]:
    """Frames [F, P, D]: the tokens that stay, and what they become."""
    frames = [joined(frame, tau) for frame in features]
    places = [f * features.shape[1] + i for f, (stands, _) in enumerate(frames) for i in stands]
    last, means = joined(torch.cat([mean for _, mean in frames]), tau)
    flat = features.flatten(0, 1)
    best = torch.cosine_similarity(flat.unsqueeze(1), means.unsqueeze(0), dim=-1).argmax(dim=1)
    tokens = [(mean + flat[best == k].sum(dim=0)) / (1 + (best == k).sum()) for k, mean in enumerate(means)]
    return [places[i] for i in last], torch.stack(tokens)


def select(features: Tensor, grid: Grid, n: tuple[int, ...], tau: float) -> Selection:
    selection = Scissor(tau=tau).select(layer_site(n, {Need.FEATURES: features, Need.GRID: grid}), counts_tensor(*n))
    selection.check(n, static=None, limit=n)
    selection.check_indices(n)
    return selection


@given(
    frames=st.integers(1, 4), patches=st.integers(1, 9), seed=st.integers(0, 50), tau=st.sampled_from([0.2, 0.6, 0.9])
)
def test_equals_the_loop(frames: int, patches: int, seed: int, tau: float):
    features = drawn(frames, patches, 3, seed=seed)
    n = frames * patches
    chosen = select(features.flatten(0, 1)[None], video_grid(frames, 1, patches), (n,), tau)
    kept, tokens = slow(features, tau)
    assert chosen.kept[0].tolist() == kept
    assert chosen.features is not None
    torch.testing.assert_close(chosen.features[0], tokens)


def test_ragged_rows_equal_single_rows_and_row_ends_stay():
    """A video, a frame, nothing; two images, each by itself, behind each a token without a place."""
    sizes, patches = (12, 4, 0, 10), 4
    still = video_grid(3, 1, patches)
    grid = Grid(*(getattr(still, name).repeat(4, 1) for name in Grid.__dataclass_fields__))
    grid.frame[3], grid.image[3] = 0, torch.arange(12) // 5
    grid.row[3, [4, 9]] = -1
    features = drawn(4, 12, 3, seed=5)
    features[3, 5:9] = features[3, :4]  # the same picture twice
    together = select(features, grid, sizes, 0.5)
    assert {4, 9} <= set(together.kept[3].tolist())
    assert together.counts[3] % 2 == 0
    for row, n in enumerate(sizes):
        if n:
            part = Grid(*(getattr(grid, name)[row : row + 1, :n] for name in Grid.__dataclass_fields__))
            single, count = select(features[row : row + 1, :n], part, (n,), 0.5), together.counts[row]
            assert single.kept[0].tolist() == together.kept[row, :count].tolist()
            assert single.features is not None
            assert together.features is not None
            torch.testing.assert_close(single.features[0], together.features[row, :count])


def test_all_alone_changes_nothing():
    features = drawn(1, 9, 4)
    chosen = select(features, video_grid(3, 1, 3), (9,), 1.0)
    assert chosen.counts == (9,)
    assert chosen.features is not None
    assert torch.equal(chosen.features, features)


def test_a_large_picture_beside_small_ones_changes_no_bit(monkeypatch: pytest.MonkeyPatch):
    """Tables of parts of the pictures, and of a few tokens at a time, say what one table says."""
    still = video_grid(5, 1, 12)
    grid = Grid(*(getattr(still, name).clone() for name in Grid.__dataclass_fields__))
    grid.frame[0, :36] = 0
    grid.col[0, :36] = torch.arange(36)
    features = drawn(1, 60, 3, seed=2)
    whole = select(features, grid, (60,), 0.9)
    monkeypatch.setattr("tokentrim.contracts.toolkit.clustering._PAIRS", 300)
    monkeypatch.setattr("tokentrim.contracts.toolkit.clustering._EDGES", 100)
    monkeypatch.setattr("tokentrim_strategies.scissor._AT_ONCE", 100)
    parts = select(features, grid, (60,), 0.9)
    assert 10 < whole.counts[0] < 60
    assert parts.kept.tolist() == whole.kept.tolist()
    torch.testing.assert_close(parts.features, whole.features)
