"""``evs`` against its definition, one token after the other."""

from __future__ import annotations

import torch
from hypothesis import given, strategies as st
from torch import Tensor
from torch.nn.functional import pad

from tests.qwen import prompt, tiny_qwen
from tests.strategies.sites_factory import counts_tensor, layer_site, raster_grid, video_grid
from tokentrim.contracts.selection import Selection
from tokentrim.contracts.sites import Grid, Need
from tokentrim.counting.forecast import plan
from tokentrim.counting.published import PRESETS
from tokentrim.session import trim
from tokentrim_strategies.evs import EVS


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def select(features: Tensor, grid: Grid, n: tuple[int, ...], ratio: float) -> Selection:
    site = layer_site(n, {Need.FEATURES: features, Need.GRID: grid})
    selection = EVS(keep_ratio=ratio).select(site, counts_tensor(*n))
    selection.check(n, static=None)
    selection.check_indices(n)
    return selection


def joined(*grids: Grid) -> Grid:
    """Side by side in one row, with numbers of images that go on."""
    found, images = [dict(vars(grid)) for grid in grids], 0
    for columns in found:
        columns["image"] = columns["image"] + images
        images = int(columns["image"].max()) + 1
    return Grid(*(torch.cat(parts, dim=1) for parts in zip(*(columns.values() for columns in found), strict=True)))


@given(frames=st.integers(1, 5), seed=st.integers(0, 99), ratio=st.sampled_from([0.0, 0.2, 0.3, 0.5, 0.9, 1.0]))
def test_equals_the_loop(frames: int, seed: int, ratio: float):
    patches = 6
    features = drawn(frames, patches, 5, seed=seed)
    change = [[3.0] * patches]
    for frame in range(1, frames):
        pairs = zip(features[frame], features[frame - 1], strict=True)
        change.append([1 - float(torch.cosine_similarity(a, b, dim=0)) for a, b in pairs])
    flat = [value for row in change for value in row]
    room = max(patches, int(ratio * len(flat) + 1e-9))
    expected = sorted(sorted(range(len(flat)), key=lambda j: -flat[j])[:room])
    found = select(features.reshape(1, -1, 5), video_grid(frames, 2, 3), (frames * patches,), ratio)
    assert found.kept[0].tolist() == expected


def test_golden():
    """Three frames of two tokens: of six, three stay: the first frame, and the one token that turns."""
    x, y = [1.0, 0.0], [0.0, 2.0]
    features = torch.tensor([[x, y, [3.0, 0.0], y, y, [0.0, 1.0]]])
    assert select(features, video_grid(3, 1, 2), (6,), 0.5).kept.tolist() == [[0, 1, 4]]
    assert select(features, video_grid(3, 1, 2), (6,), 0.0).kept.tolist() == [[0, 1]]
    # The first frame's second token is gone: the one behind it counts as new, and comes before the one that turns.
    cut = Grid(*(part[:, [0, 2, 3, 4, 5]] for part in vars(video_grid(3, 1, 2)).values()))
    assert select(features[:, [0, 2, 3, 4, 5]], cut, (5,), 0.5).kept.tolist() == [[0, 2]]


def test_rows_videos_and_images_are_by_themselves():
    video, images = video_grid(4, 2, 2), raster_grid(1, 3, images=2)
    grids = [video, images, joined(images, video)]
    columns = zip(*(vars(grid).values() for grid in grids), strict=True)
    grid = Grid(*(torch.cat([pad(one, (0, 22 - one.shape[1]), value=-1) for one in parts]) for parts in columns))
    features = drawn(3, 22, 8)
    features[2] = torch.cat([features[1, :6], features[0, :16]])
    found = select(features, grid, (16, 6, 22), 0.4)
    kept = [row[:count].tolist() for row, count in zip(found.kept, found.counts, strict=True)]
    assert kept[0] == select(features[:1, :16], video, (16,), 0.4).kept[0].tolist()
    assert kept[1] == list(range(6))
    assert kept[2] == kept[1] + [6 + token for token in kept[0]]


def test_a_plan_is_an_upper_bound_and_the_report_says_what_was_met():
    """Of an image everything stays; of a video of eight frames a quarter, of one of two frames a half."""
    bound = plan(EVS(), PRESETS["qwen2.5-vl-7b"], 1296)
    assert not bound.exact
    assert bound.usage.layer_mean_ratio == 1
    model = tiny_qwen()
    for part, kept in ((("image", 4, 6), 24), (("video", 8, 2, 4), 16), (("video", 2, 2, 4), 8)):
        inputs = prompt(model, [3, part, 5])
        with torch.no_grad(), trim(model, EVS()) as session:
            model(**inputs)
        assert session.report().tokens_per_layer == [kept] * 6
