"""``dycoke`` against the loop of its definition; what a step reads, in batches and under beam search."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, strategies as st
from torch import Tensor

from tests.strategies.sites_factory import attention, counts_tensor, layer_site, model_shape, step_site, video_grid
from tokentrim.contracts.extras import PromptInfo
from tokentrim.contracts.selection import Selection
from tokentrim.contracts.sites import Grid, Need
from tokentrim.counting.rounding import keep_count
from tokentrim_strategies.dycoke import DyCoke


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def thin(features: Tensor, grid: Grid, n: tuple[int, ...], **parameters: Any) -> Selection:
    (part,) = DyCoke(**parameters).spatial_parts
    selection = part.select(layer_site(n, {Need.FEATURES: features, Need.GRID: grid}), counts_tensor(*n))
    selection.check(n, static=None, limit=n)
    selection.check_indices(n)
    return selection


def slow(features: Tensor, frames: int, share: float) -> list[int]:
    """Frames [F, P, D]: each frame but the first of four loses what is most like its reference."""
    kept: list[int] = []
    patches = features.shape[1]
    for frame in range(frames):
        reference = {1: frame - 1, 2: frame - 2, 3: frame - 1}.get(frame % 4)
        order = list(range(patches))
        if reference is not None:
            similar = torch.cosine_similarity(features[frame], features[reference], dim=-1).tolist()
            order = sorted(order, key=lambda j: similar[j])[: keep_count(share, patches)]
        kept += sorted(frame * patches + j for j in order)
    return kept


@given(frames=st.integers(1, 9), patches=st.integers(1, 7), share=st.sampled_from([0.0, 0.3, 0.5, 1.0]))
def test_equals_the_loop(frames: int, patches: int, share: float):
    features = drawn(frames, patches, 4)
    n = frames * patches
    kept = thin(features.flatten(0, 1)[None], video_grid(frames, 1, patches), (n,), keep_ratio=share).kept
    assert kept[0].tolist() == slow(features, frames, share)


@pytest.mark.parametrize("version", ["paper", "code"])
def test_ragged_rows_equal_single_rows_and_images_stay_whole(version: Any):
    """A long video, an image, nothing, and a video with a token that has no place."""
    sizes, patches = (28, 4, 0, 13), 4
    still = video_grid(7, 1, patches)
    grid = Grid(*(getattr(still, name).repeat(4, 1) for name in Grid.__dataclass_fields__))
    grid.row[3, 12] = -1
    features = drawn(4, 28, 5)
    together = thin(features, grid, sizes, version=version, keep_ratio=0.5)
    assert together.counts[1:3] == (4, 0)
    assert 12 in together.kept[3].tolist()
    for place, n in enumerate(sizes):
        if n:
            part = Grid(*(getattr(grid, name)[place : place + 1, :n] for name in Grid.__dataclass_fields__))
            single = thin(features[place : place + 1, :n], part, (n,), version=version, keep_ratio=0.5)
            assert together.kept[place, : together.counts[place]].tolist() == single.kept[0].tolist()


def test_steps():
    """What is like the step before keeps its choice; released, it reads everything. Beams take their choice along."""
    rows = torch.tensor([[0.1, 0.5, 0.2, 0.4], [0.1, 0.4, 0.2, 0.41], [0.9, 0.0, 0.1, 0.0]])
    for version, second in (("paper", [[1, 3], [1, 3]]), ("code", [[0, 1, 2, 3], [0, 1, 2, 3]])):
        part = DyCoke(read_ratio=0.5, layer=2, version=version).temporal_part
        assert part is not None
        assert not part.evicts()
        state = part.begin(PromptInfo((4, 4), model_shape()))
        for step, expected in enumerate(([[1, 3], [1, 3]], second, [[0, 2], [0, 2]]), start=1):
            given_row = rows[step - 1].expand(2, 2, 4)
            for layer in (2, 5):
                site = step_site((4, 4), {Need.LAST_ROW: given_row}, step=step, layer=layer)
                object.__setattr__(site, "state", state)
                counts = counts_tensor(*[part.count(step, layer, 4, model_shape())] * 2)
                assert part.select(site, counts).kept.tolist() == expected
            state.select_rows(torch.tensor([1, 1]))
        early = step_site((4, 4), {Need.LAST_ROW: attention(2, 2, 4)}, layer=1)
        assert part.select(early, counts_tensor(4, 4)).counts == (4, 4)
        assert [part.row_layer(layer, model_shape()) for layer in (0, 1, 2, 3)] == [0, 1, 1, 1]
