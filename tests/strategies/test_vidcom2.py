"""``vidcom2`` against its definition, one frame after the other."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, strategies as st
from torch import Tensor
from torch.nn.functional import pad

from tests.strategies.sites_factory import counts_tensor, layer_site, raster_grid, video_grid
from tokentrim.contracts.selection import Selection
from tokentrim.contracts.sites import Grid, Need
from tokentrim.counting.published import PRESETS
from tokentrim_strategies.vidcom2 import VidCom2


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def select(
    features: Tensor, grid: Grid, n: tuple[int, ...], counts: tuple[int, ...], total: str = "exact"
) -> Selection:
    strategy = VidCom2.model_validate({"keep_ratio": None, "keep_count": max(counts), "total": total})
    site = layer_site(n, {Need.FEATURES: features, Need.GRID: grid})
    selection = strategy.select(site, counts_tensor(*counts))
    selection.check(n, static=counts if total == "exact" else None)
    selection.check_indices(n)
    return selection


def slow(features: Tensor, frames: int, ratio: float, total: int | None) -> list[int]:
    """Token numbers of one video; ``total`` None: as rounding leaves them."""
    features = features.double()
    channels = features.var(dim=0, unbiased=False).argsort()[: features.shape[1] // 2]
    tokens = torch.nn.functional.normalize(features[:, channels], dim=1).reshape(frames, -1, len(channels))
    n = tokens.shape[1]

    def like(a: Tensor, b: Tensor) -> float:
        return sum(math.exp(-float((a - b).square().sum()) / (2 * width)) for width in (0.125, 0.25, 0.5, 1, 2))

    centre = tokens.mean(dim=(0, 1))
    video = [[like(x, centre) for x in frame] for frame in tokens]
    score = [
        [u + like(x, frame.mean(dim=0)) for u, x in zip(us, frame, strict=True)]
        for us, frame in zip(video, tokens, strict=True)
    ]
    bonus = torch.softmax(torch.tensor([-sum(us) / n / 0.01 for us in video]), dim=0).tolist()
    quotas = [max(1, round(min(1.0, ratio * (1 + p - 1 / frames)) * n)) for p in bonus]
    flat = [(s, f * n + j) for f, frame in enumerate(score) for j, s in enumerate(frame)]
    ranked = [sorted(flat[f * n : (f + 1) * n]) for f in range(frames)]
    first = sorted(frame[0] for frame in ranked)
    share = sorted(one for frame, quota in zip(ranked, quotas, strict=True) for one in frame[1:quota])
    rest = sorted(set(flat) - {*first, *share})
    return sorted(number for _, number in [*first, *share, *([] if total is None else rest)][:total])


@given(frames=st.integers(1, 5), patches=st.integers(3, 9), seed=st.integers(0, 99), data=st.data())
def test_equals_the_loop(frames: int, patches: int, seed: int, data: st.DataObject):
    n = frames * patches
    count = data.draw(st.integers(0, n))
    features, grid = drawn(n, 7, seed=seed) + drawn(1, 7, seed=seed + 100), video_grid(frames, 1, patches)
    assert select(features[None], grid, (n,), (count,)).kept[0].tolist() == slow(features, frames, count / n, count)
    found = VidCom2(keep_ratio=0.4, total="released").select(
        layer_site((n,), {Need.FEATURES: features[None], Need.GRID: grid}), counts_tensor(n)
    )
    assert found.kept[0].tolist() == slow(features, frames, 0.4, None)


def test_a_still_video_keeps_what_moves():
    """Tokens that are all alike but for one: that one stays, and with it one token of every frame."""
    features = 1 + 0.01 * drawn(1, 36, 16)
    features[0, 23] *= -1
    kept = select(features, video_grid(4, 3, 3), (36,), (5,)).kept[0]
    assert 23 in kept.tolist()
    assert set((kept // 9).tolist()) == {0, 1, 2, 3}


@pytest.mark.parametrize("total", ["exact", "released"])
def test_rows_and_videos_are_by_themselves(total: str):
    """A video of three frames, two images, nothing, and both: every row as alone, and every picture as in its row."""
    video, images = video_grid(3, 2, 3), raster_grid(2, 3, images=2)
    both = Grid(*(torch.cat([a, b], dim=1) for a, b in zip(vars(video).values(), vars(images).values(), strict=True)))
    both = replace(both, image=torch.cat([video.image + 2, images.image], dim=1))  # images are numbered first
    grids, n = [video, images, Grid(*[torch.zeros(1, 0, dtype=torch.int64)] * 8), both], (18, 12, 0, 30)
    columns = zip(*(vars(grid).values() for grid in grids), strict=True)
    padded = Grid(*(torch.cat([pad(one, (0, 30 - one.shape[1]), value=-1) for one in parts]) for parts in columns))
    features = drawn(4, 30, 8)
    features[3] = torch.cat([features[0, :18], features[1, :12]])
    counts = (6, 4, 0, 10)
    together = select(features, padded, n, counts, total)
    for row, own in enumerate(n):
        if own:
            one = VidCom2(
                keep_ratio=None, keep_count=max(counts), total=total
            ).select(  # pyright: ignore
                layer_site((own,), {Need.FEATURES: features[row : row + 1, :own], Need.GRID: grids[row]}),
                counts_tensor(counts[row]),
            )
            assert together.kept[row, : together.counts[row]].tolist() == one.kept[0].tolist()
    if total == "exact":
        first, second, _, joined = (together.kept[row, : together.counts[row]].tolist() for row in range(4))
        assert joined == first + [18 + number for number in second]


def test_plans():
    """Exact: what was asked for. As released the number of frames decides, so a plan can only say: at most all."""
    plain = PRESETS["llava-1.5-7b"]
    assert VidCom2().schedule(plain, 576).count_at(0) == 144
    assert VidCom2(total="released").schedule(plain, 576).count_at(0) == 576
    assert VidCom2().count_is_static
    assert not VidCom2(total="released").count_is_static
