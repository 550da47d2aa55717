"""``prunevid``: scenes by hand, the first stage against its loop, batches, and both stages on images."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from tests.strategies.sites_factory import attention, counts_tensor, layer_site, model_shape, video_grid
from tokentrim import density_peaks
from tokentrim.contracts.extras import PromptInfo
from tokentrim.contracts.selection import Selection
from tokentrim.contracts.sites import Grid, LayerSite, Need
from tokentrim.errors import StrategyError
from tokentrim_strategies._video import scenes_of
from tokentrim_strategies.prunevid import PruneVid

_FIELDS = tuple(Grid.__dataclass_fields__)


def film(frames: int, patches: int, seed: int = 0) -> Tensor:
    """Two scenes, each with a background that hardly moves and a foreground that does: [F, P, D]."""
    generator = torch.Generator().manual_seed(seed)
    scenes = 4 * torch.randn(2, patches, 6, generator=generator)
    moving = torch.rand(frames, patches, 1, generator=generator) < torch.linspace(0, 0.6, patches)[:, None]
    noise = torch.randn(frames, patches, 6, generator=generator)
    which = (torch.arange(frames) >= frames // 2).long()
    return scenes[which] + torch.where(moving, 4 * noise, 0.1 * noise)


def first_site(
    features: Tensor, grid: Grid, n: tuple[int, ...], strategy: PruneVid, keys: tuple[int, ...]
) -> LayerSite:
    data = {Need.FEATURES: features, Need.GRID: grid, Need.RANDOM: None}
    return replace(layer_site(n, data, keys=keys), state=strategy.begin(PromptInfo(n, model_shape())))


def select(site: LayerSite, strategy: PruneVid) -> Selection:
    chosen = strategy.select(site, counts_tensor(*site.n_visual))
    chosen.check(site.n_visual, static=None, limit=site.n_visual)
    chosen.check_indices(site.n_visual)
    return chosen


def merged(chosen: Selection, features: Tensor) -> Tensor:
    """[B, K, D]: what the engine makes of merged tokens."""
    assert chosen.target is not None
    place = chosen.target.unsqueeze(2).expand_as(features)
    start = features.new_zeros(len(features), chosen.kept.shape[1], features.shape[2])
    return start.scatter_reduce(1, place, features, "mean", include_self=False)


@pytest.mark.parametrize(
    ("labels", "scenes"),
    [
        ([3], (1,)),
        ([0, 1, 2], (3,)),  # no run of two: one scene
        ([0, 0, 0, 1, 1], (3, 2)),
        ([0, 0, 0, 2, 1, 1], (4, 2)),  # the gap goes to the longer side
        ([0, 0, 2, 1, 1], (3, 2)),  # ... the left one of equals
        ([0, 0, 1, 0, 0, 2, 2, 2], (5, 3)),  # two runs of one label that meet
        ([4, 0, 0, 2, 1, 1, 1, 3, 5, 5, 5, 5], (4, 3, 5)),  # 0 has grown by the first frame: 3 against 3
    ],
)
def test_scenes(labels: list[int], scenes: tuple[int, ...]):
    assert scenes_of(labels) == scenes


def slow(features: Tensor, scenes: tuple[int, ...], strategy: PruneVid, noise: Tensor) -> dict[int, Tensor]:
    """Number and vector of every token that is left, with the noise [N] that parts equal densities."""
    patches, found, begin = features.shape[1], dict[int, Tensor](), 0
    for frames in scenes:
        scene = features[begin : begin + frames]
        units = torch.nn.functional.normalize(scene, dim=-1)
        pairs = [units[i] * units[j] for i in range(frames) for j in range(frames) if i != j]
        cosine = torch.stack(pairs).sum(dim=-1).mean(dim=0) if pairs else torch.full((patches,), -1.0)
        static = [j for j in range(patches) if cosine[j] > strategy.tau]
        groups = [[(begin * patches + j, scene[:, j].mean(dim=0)) for j in static]]
        for f in range(frames):
            groups.append([((begin + f) * patches + j, scene[f, j]) for j in range(patches) if j not in static])
        for group in groups:
            n = len(group)
            if n <= 14:
                found |= dict(group)
                continue
            points = torch.stack([vector for _, vector in group])
            at = noise[[number for number, _ in group]]
            own, centres = density_peaks(points[None], [n], [int(n * strategy.clusters)], [7], at[None])
            found |= {group[c][0]: points[own[0] == c].mean(dim=0) for c in centres[0].tolist()}
        begin += frames
    return found


@pytest.mark.parametrize(("frames", "patches", "tau"), [(12, 30, 0.8), (9, 20, 0.5), (8, 16, -1.0), (1, 40, 0.8)])
def test_equals_the_loop(frames: int, patches: int, tau: float):
    strategy, features, n = PruneVid(tau=tau), film(frames, patches), frames * patches
    site = first_site(features.flatten(0, 1)[None], video_grid(frames, 1, patches), (n,), strategy, (7,))
    chosen = select(site, strategy)
    (scenes,) = strategy.merged(site).scenes
    assert sum(scenes) == frames
    expected = slow(features, scenes, strategy, site.random(0)[0])
    assert chosen.kept[0].tolist() == sorted(expected)
    tokens = merged(chosen, site.features)[0]
    torch.testing.assert_close(tokens, torch.stack([expected[i] for i in sorted(expected)]))


def test_ragged_rows_equal_single_rows_in_both_stages():
    """A video, an image, nothing, and two videos with a token behind that has no place."""
    strategy, sizes, keys = PruneVid(alpha=0.3, tau=0.6), (200, 20, 0, 161), (5, 6, 7, 8)
    still = video_grid(10, 1, 20)
    grid = Grid(*(getattr(still, name).repeat(4, 1) for name in _FIELDS))
    grid.image[3], grid.frame[3] = torch.arange(200) // 80, torch.arange(200) // 20 % 4
    grid.row[3, 160:] = -1
    features = film(10, 20).flatten(0, 1).repeat(4, 1, 1) + 0.01 * attention(4, 200, 6).float()
    rows = attention(4, 2, 3, 200)

    def both(site: LayerSite, text: Tensor) -> tuple[Selection, Selection]:
        one = select(site, strategy)
        ids = site.ids.gather(1, one.kept.clamp(min=0))
        text = text.gather(3, ids.clamp(min=0)[:, None, None].expand(-1, *text.shape[1:3], -1))
        data = {Need.TEXT_ROWS: (text, torch.tensor([[True, True, False]]).expand(len(text), 3))}
        later = replace(layer_site(one.counts, data, boundary=11, ids=ids), state=site.state)
        return one, select(later, strategy)

    first, second = both(first_site(features, grid, sizes, strategy, keys), rows)
    assert 160 in first.kept[3].tolist()
    for row, n in enumerate(sizes):
        if n:
            part = Grid(*(getattr(grid, name)[row : row + 1, :n] for name in _FIELDS))
            site = first_site(features[row : row + 1, :n], part, (n,), strategy, keys[row : row + 1])
            for together, alone in zip((first, second), both(site, rows[row : row + 1, :, :, :n]), strict=True):
                count = together.counts[row]
                assert together.kept[row, :count].tolist() == alone.kept[0].tolist()
                if alone.target is not None and together.target is not None:
                    assert together.target[row, :n].tolist() == alone.target[0].tolist()


def test_groups_of_many_sizes_are_clustered_a_few_at_a_time(monkeypatch: pytest.MonkeyPatch):
    strategy, features = PruneVid(tau=0.6), film(12, 40).flatten(0, 1)[None]
    site = first_site(features, video_grid(12, 1, 40), (480,), strategy, (7,))
    whole = select(site, strategy)
    monkeypatch.setattr("tokentrim.contracts.toolkit.clustering._PAIRS", 2000)
    parts = select(site, strategy)
    assert parts.kept.tolist() == whole.kept.tolist()
    assert torch.equal(merged(parts, features), merged(whole, features))


def test_a_layer_with_none_behind_it_is_refused():
    with pytest.raises(StrategyError, match="be below 11, the model's last layer"):
        PruneVid(layer=11).schedule(model_shape(12), 9)
    assert PruneVid(layer=10).needed_at(11) == {Need.TEXT_ROWS}
