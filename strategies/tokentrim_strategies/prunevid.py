"""``prunevid``: what stands still in a scene becomes one token, the rest is clustered; then attention chooses."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Final

from pydantic import Field

from tokentrim import (
    LayerSite,
    ModelShape,
    Need,
    PromptInfo,
    Schedule,
    Selection,
    SpatialSelector,
    Stage,
    StrategyError,
    complaint,
    keep_count,
)
from tokentrim_strategies._keeping import Share
from tokentrim_strategies._video import scenes_of

if TYPE_CHECKING:
    from torch import Tensor

_SMALL: Final = 14
"""Tokens up to which a group is not clustered."""
_NEIGHBOURS: Final = 7


@dataclass
class Chosen:
    """What one prompt remembers of the first stage.

    Attributes:
        width: N of the whole prompt.
        number: int64 [B, N] by raster number: the group that a token is in, from 1 on; 0 = none.
    """

    width: int
    number: Tensor | None = None


@dataclass(frozen=True)
class Merged:
    """What the first stage makes of the T tokens that have a place, in the order of rows and of the tokens in them.

    Attributes:
        at: int64 [T] on the host: their numbers b N + i.
        scenes: frames of each scene of each video.
        scene: int64 [T] on the host: number of each token's scene, over all videos.
        static: bool [T] on the host: whether its place does not change in the scene.
        group: int64 [T] on the host: number of its group.
        target: int64 [T]: the one of the T that each becomes part of.
        rank: int64 [T]: orders those that are left of a group, best cluster first where it was clustered.
    """

    at: Tensor
    scenes: list[tuple[int, ...]]
    scene: Tensor
    static: Tensor
    group: Tensor
    target: Tensor
    rank: Tensor


class PruneVid(SpatialSelector):
    """Cut a video into scenes, merge what stands still in each, cluster the rest; behind a layer, let attention choose.

    At the input, per video of F frames:

    - *Scenes*: density peaks (:func:`tokentrim.density_peaks`, 7 neighbours) over the means of the frames give each
      frame one of ``floor(segments F)`` labels. Of each label the longest run of frames stays (all that are as long),
      unless it is a single frame; every gap, from the front, joins the longer of the runs beside it as they then are,
      the left one of equals. Runs of equal labels are the scenes.
    - *Static* is a place whose tokens in a scene of T > 1 frames have a mean cosine above ``tau``, over all pairs; they
      become one, their mean. The others are dynamic, frame by frame.
    - The static tokens of a scene, and the dynamic ones of each of its frames, are a group. A group of n > 14 is
      clustered by density peaks into ``floor(clusters n)`` means.

    At boundary ``layer`` + 1, of each group of n the ``floor(alpha n)`` tokens stay that any text token in any head of
    layer ``layer`` attends to most: by ``max A[h, i, j]`` over h and i.

    A merged token takes the place of its cluster's centre; a static one stands in the first frame of its scene. The
    released code lists a scene's static tokens in front of its dynamic ones, which we do not (ours: places keep their
    order). Its cut takes the tokens out of the cache of layers 0 to ``layer`` as well; here these keep them. It
    raises below 7 frames, where we take as many neighbours as there are (ours). Noise that parts equal densities is
    a function of seed and picture here.

    An image is a video of one frame (ours), in which nothing is static: it is clustered, and attention chooses.
    Several videos are treated each by itself; the planes of a tiled image are two; tokens without a place (row
    ends) pass the first stage, and are a group of their own in the second (ours).

    When it fails: a moving camera leaves nothing static; small things share a cluster with what surrounds them. How
    much is static depends on the video: plans are upper bounds, and know of the second stage alone.

    Cost: density peaks within groups, O(n^2 D) each, and four reads of the device at the input; attention rows of all
    text tokens in layer ``layer``, and one read there. Layers 0 to ``layer`` run with what the first stage left.

    Parameters: ``alpha`` (share kept in the second stage, of each group; the paper's .4), ``layer`` (10), ``tau`` (a
    cosine, .8), ``segments`` (scenes per frame, .25), ``clusters`` (share of a group, .5), ``seed``.

    ```bibtex
    @inproceedings{huang2025prunevid,
      title={{PruneVid}: Visual Token Pruning for Efficient Video Large Language Models},
      author={Huang, Xiaohu and Zhou, Hao and Han, Kai},
      booktitle={Findings of the Association for Computational Linguistics: ACL 2025},
      year={2025},
      note={arXiv:2412.16117}
    }
    ```
    """

    name: ClassVar[str] = "prunevid"
    stage: ClassVar[Stage] = "prefill"
    needs: ClassVar[frozenset[Need]] = frozenset({Need.FEATURES, Need.GRID, Need.RANDOM, Need.TEXT_ROWS})
    count_is_static: ClassVar[bool] = False
    merges: ClassVar[bool] = True
    budget_knob: ClassVar[str | None] = "alpha"

    alpha: Share = Field(default=0.4, description="share of each group's tokens that stays behind the layer")
    layer: int = Field(default=10, ge=0, description="decoder layer (0-based) whose attention chooses")
    tau: float = Field(
        default=0.8, ge=-1, le=1, allow_inf_nan=False, description="cosine above which a place is static"
    )
    segments: Share = Field(default=0.25, description="scenes that a video is cut into, as a share of its frames")
    clusters: Share = Field(default=0.5, description="clusters of a group, as a share of its tokens")
    seed: int = Field(default=0, ge=0, lt=2**31, description="seed of the noise that parts equal densities")

    def schedule(self, shape: ModelShape, n_visual: int) -> Schedule:
        """At most everything, and behind the layer at most the share."""
        if self.layer + 1 >= shape.n_layers:
            raise StrategyError(
                complaint("layer of strategy 'prunevid'", f"be below {shape.n_layers - 1}, the model's last layer",
                          self.layer, "choose a layer with another one behind it")
            )  # fmt: skip
        return Schedule.of({0: n_visual, self.layer + 1: keep_count(self.alpha, n_visual)})

    def needed_at(self, boundary: int) -> frozenset[Need]:
        """The picture at the input, attention later."""
        return self.needed() & {Need.TEXT_ROWS} if boundary else self.needed() - {Need.TEXT_ROWS}

    def begin(self, prompt: PromptInfo) -> Chosen:
        """No groups yet."""
        return Chosen(max(prompt.n_visual, default=0))

    def select(self, site: LayerSite, count: Tensor) -> Selection:
        """The first stage at the input, the second behind the layer."""
        if not max(site.n_visual, default=0):
            return Selection.everything(site.n_visual, site.device)
        return self._best(site) if site.boundary else self._first(site)

    def _best(self, site: LayerSite) -> Selection:
        """The best of each group."""
        import torch

        from tokentrim import Groups

        rows, real = site.text_rows
        score = rows.amax(dim=1).masked_fill(~real.unsqueeze(-1), 0.0).amax(dim=1).masked_fill(~site.valid, -1.0)
        site.note(score, "chooses within each frame, and among what stands still in each scene")
        state: Chosen = site.state
        number = torch.zeros_like(site.ids) if state.number is None else state.number.to(site.device)
        groups = Groups.of(number.gather(1, site.ids.clamp(min=0)), site.valid)
        quota = [keep_count(self.alpha, size) for size in range(score.shape[1] + 1)]
        mask = site.valid & (groups.rank(score) < torch.tensor(quota, device=site.device)[groups.size])
        return Selection.from_mask(mask, tuple(mask.sum(dim=1).tolist()))

    def _first(self, site: LayerSite) -> Selection:
        """What is left of each group, and the tokens that have no place."""
        import torch

        from tokentrim import merge_into, written

        state: Chosen = site.state
        found, (batch, width) = self.merged(site), site.ids.shape
        at, line = found.at.to(site.device), torch.arange(batch * width, device=site.device)
        number = torch.full_like(line, len(at) + 1).index_put((at,), found.group.to(site.device) + 1)
        state.number = written(number.new_zeros(batch, state.width), site.ids, number.view(batch, width))
        into = (line.index_put((at,), at[found.target]).view(batch, width) % width).masked_fill(~site.valid, -1)
        counts = tuple((into == line[:width]).sum(dim=1).tolist())
        return Selection.everything(site.n_visual, site.device) if counts == site.n_visual else merge_into(into, counts)

    def merged(self, site: LayerSite) -> Merged:
        """Scenes, what stands still in them, and clusters. What is known of the grid alone is numbered on the host."""
        import torch

        from tokentrim import clustered, numbered, unit

        width, grid, device = site.ids.shape[1], site.grid, site.device
        names = torch.stack([grid.image * 2 + grid.plane, grid.frame, grid.row, grid.col]).cpu().flatten(1)
        real = torch.arange(width) < torch.tensor(site.n_visual).unsqueeze(1)
        at = (real.flatten() & (names[2] >= 0)).nonzero().flatten()
        picture, time, *place = names[:, at].unbind()
        video, own = numbered(at // width, picture), torch.arange(len(at))
        frame = numbered(video, time)
        n = torch.bincount(frame)
        sizes = torch.bincount(torch.zeros_like(n).scatter(0, frame, video)).tolist()
        tokens = site.features.float().flatten(0, 1)[at.to(device)]
        noise = site.random(self.seed).flatten()[at.to(device)]

        # Scenes, by the means of frames.
        means = _sums(tokens, frame, len(n)) / n.to(device).unsqueeze(1)
        last = torch.zeros_like(n).scatter_reduce(0, frame, own, "amax")
        wanted = [max(keep_count(self.segments, size), 1) for size in sizes]
        labels, _ = clustered(means, noise[last.to(device)], own[: len(n)].split(sizes), wanted, _NEIGHBOURS)
        scenes = [scenes_of(one.tolist()) for one in labels.cpu().split(sizes)]

        # A place that does not change in a scene is one token from here on.
        length = torch.tensor([frames for one in scenes for frames in one], dtype=torch.int64)
        scene = torch.repeat_interleave(torch.arange(len(length)), length)[frame]
        spot = numbered(scene, *place)
        n = torch.bincount(spot)
        frames = torch.zeros_like(n).scatter(0, spot, length[scene])
        directions, pairs = unit(tokens), (frames * (frames - 1)).clamp(min=1).to(device)
        alike = _sums(directions, spot, len(n)).square().sum(dim=1)
        alike = (alike - _sums(directions.square().sum(dim=1), spot, len(n))) / pairs
        still = ((alike > self.tau).cpu() & (frames > 1) & (n == frames))[spot]
        first = torch.full_like(n, len(at)).scatter_reduce(0, spot, own, "amin")[spot]
        means = _sums(tokens, spot, len(n)) / n.to(device).unsqueeze(1)
        tokens = torch.where(still.to(device).unsqueeze(1), means[spot.to(device)], tokens)

        # The groups, static before dynamic, and of the large ones clusters.
        stays = ~still | (first == own)
        group = numbered(scene, torch.where(still, 0, 1 + frame))
        members = [one[stays[one]] for one in group.argsort(stable=True).split(torch.bincount(group).tolist())]
        members = [one for one in members if len(one) > _SMALL]
        left = [max(keep_count(self.clusters, len(one)), 1) for one in members]
        target, rank = clustered(tokens, noise, members, left, _NEIGHBOURS)
        target = target[torch.where(still, first, own).to(device)]
        return Merged(at, scenes, scene, still, group, target, rank)


def _sums(what: Tensor, number: Tensor, groups: int) -> Tensor:
    """[groups, ...]: sums of ``what`` [T, ...] by the ``number`` int64 [T] of each."""
    return what.new_zeros(groups, *what.shape[1:]).index_add(0, number.to(what.device), what)
