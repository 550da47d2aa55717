"""``prunevid``: what stands still in a scene becomes one token, the rest is clustered; then attention chooses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, ClassVar

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

if TYPE_CHECKING:
    from torch import Tensor

_SMALL = 14
"""Tokens up to which a group is not clustered."""
_NEIGHBOURS = 7


@dataclass
class Chosen:
    """What one prompt remembers of the first stage.

    Attributes:
        number: int64 [B, N] by raster number: the group that a token is in, counted from 1 in each row; 0 = none.
        width: N.
        largest: tokens of the largest group.
    """

    number: Tensor | None
    width: int
    largest: int = 0


@dataclass(frozen=True)
class TokenGroup:
    """Tokens that are clustered together, and that the second stage chooses among.

    Attributes:
        video: number of its video, over all rows.
        scene: number of its scene in the video.
        static: whether it is the scene's static tokens, or the dynamic ones of a frame.
        members: int64 [n] on the host, numbers b N + i.
        left: tokens that it becomes.
    """

    video: int
    scene: int
    static: bool
    members: Tensor
    left: int


@dataclass(frozen=True)
class Merged:
    """The first stage.

    Attributes:
        vectors: float32 [B N, D]: what stands at each token's place, where something does.
        scenes: frames of each scene of each video.
        groups: in the order of videos, scenes, static before dynamic, frames.
        kept: int64 [G, m]: numbers b N + i of what is left of each group, best first where it was clustered; -1 behind.
        rows: the row that each group is in.
    """

    vectors: Tensor
    scenes: list[tuple[int, ...]]
    groups: list[TokenGroup]
    kept: Tensor
    rows: list[int]


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

    Cost: density peaks within groups, O(n^2 D) each, and three reads of the device at the input; attention rows of all
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
        return Chosen(None, max(prompt.n_visual, default=0))

    def select(self, site: LayerSite, count: Tensor) -> Selection:
        """The first stage at the input, the second behind the layer."""
        if not max(site.n_visual, default=0):
            return Selection.everything(site.n_visual, site.device)
        return self._best(site) if site.boundary else self._first(site)

    # ------------------------------------------------------------------ behind the layer

    def _best(self, site: LayerSite) -> Selection:
        """The best of each group."""
        import torch

        from tokentrim import ranks_within

        state: Chosen = site.state
        rows, real = site.text_rows
        score = rows.amax(dim=1).masked_fill(~real.unsqueeze(-1), 0.0).amax(dim=1).masked_fill(~site.valid, -1.0)
        site.note(score, "chooses within each frame, and among what stands still in each scene")
        number = torch.zeros_like(site.ids) if state.number is None else state.number.to(site.device)
        number = number.gather(1, site.ids.clamp(min=0)).masked_fill(~site.valid, -1)
        ordered = number.sort(dim=1).values
        group, ends = torch.searchsorted(ordered, number), torch.searchsorted(ordered, number, right=True)
        quota = torch.tensor([keep_count(self.alpha, size) for size in range(state.largest + 1)], device=site.device)
        mask = site.valid & (ranks_within(score, group) < quota[(ends - group).clamp(max=state.largest)])
        return Selection.from_mask(mask, tuple(mask.sum(dim=1).tolist()))

    # ------------------------------------------------------------------ at the input

    def _first(self, site: LayerSite) -> Selection:
        """What is left of each group, and the tokens that have no place."""
        import torch

        state: Chosen = site.state
        batch, width = site.ids.shape
        found = self.merged(site)
        apart = site.valid & (site.grid.row < 0)
        counts = apart.sum(dim=1).tolist()
        state.largest = max(counts)
        number = torch.zeros(batch * width + 1, dtype=torch.int64, device=site.device)
        for row, group in zip(found.rows, found.groups, strict=True):
            counts[row] += group.left
            state.largest = max(state.largest, group.left)
        names = torch.arange(1, len(found.groups) + 1, device=site.device).unsqueeze(1).expand_as(found.kept)
        places = found.kept.masked_fill(found.kept < 0, batch * width)
        number = number.scatter(0, places.flatten(), names.flatten())[:-1].view(batch, width)
        number = number.masked_fill(apart, len(found.groups) + 1)
        # By raster number, a place more for padding.
        at = site.ids.masked_fill(~site.valid, state.width)
        state.number = number.new_zeros(batch, state.width + 1).scatter(1, at, number)[:, :-1]
        if tuple(counts) == site.n_visual:
            return Selection.everything(site.n_visual, site.device)
        chosen = Selection.from_mask(number > 0, tuple(counts))
        vectors = found.vectors.view(batch, width, -1)
        at = chosen.kept.clamp(min=0).unsqueeze(-1).expand(-1, -1, vectors.shape[2])
        return Selection(chosen.kept, chosen.counts, features=vectors.gather(1, at))

    def merged(self, site: LayerSite) -> Merged:
        """Scenes, what stands still in them, and clusters."""
        import torch

        from tokentrim import density_peaks

        vectors = site.features.float().flatten(0, 1)
        noise = torch.nn.functional.pad(site.random(self.seed).flatten(), (0, 1))
        rows, videos = _videos(site)
        scenes, groups = list[tuple[int, ...]](), list[TokenGroup]()
        if videos:
            scenes, still, vectors = self._scenes(vectors, noise, videos)
            groups = self._groups(videos, scenes, still)
        wide = max((len(group.members) for group in groups), default=0)
        members = _padded([group.members for group in groups], wide).to(site.device)
        kept = members.clone()
        large = [place for place, group in enumerate(groups) if group.left < len(group.members)]
        if large:
            sizes, left = [len(groups[one].members) for one in large], [groups[one].left for one in large]
            at = torch.tensor(large, device=site.device)
            mine = members[at]
            spare = torch.cat([vectors, vectors.new_zeros(1, vectors.shape[1])])
            points = spare[mine]
            neighbours = [min(_NEIGHBOURS, size) for size in sizes]
            own, centres = density_peaks(points, sizes, left, neighbours, noise[mine])
            own = own.masked_fill(own < 0, wide)
            total = points.new_zeros(len(large), wide + 1, points.shape[2])
            total = total.scatter_add(1, own.unsqueeze(-1).expand_as(points), points)
            size = own.new_zeros(len(large), wide + 1).scatter_add(1, own, torch.ones_like(own)).clamp(min=1)
            mean = total / size.unsqueeze(-1)
            home = mine.gather(1, centres.clamp(min=0)).masked_fill(centres < 0, -1)
            mean = mean.gather(1, centres.clamp(min=0).unsqueeze(-1).expand(-1, -1, points.shape[2]))
            spare = spare.index_copy(0, home.masked_fill(home < 0, len(vectors)).flatten(), mean.flatten(0, 1))
            vectors = spare[:-1]
            kept[at] = torch.nn.functional.pad(home, (0, wide - home.shape[1]), value=-1)
        return Merged(vectors, scenes, groups, kept, [rows[group.video] for group in groups])

    def _scenes(
        self, vectors: Tensor, noise: Tensor, videos: Sequence[Tensor]
    ) -> tuple[list[tuple[int, ...]], list[Tensor], Tensor]:
        """Frames of each scene of each video, bool [scenes, P] on the host of each, whether a place is static; and
        [B N, D], vectors with the static places' means where scenes begin.
        """
        import torch

        from tokentrim import density_peaks, unit

        device, dim = vectors.device, vectors.shape[1]
        frames, places = (max((video.shape[axis] for video in videos), default=0) for axis in (0, 1))
        index = torch.full((len(videos), frames, places), -1)
        for one, video in zip(index, videos, strict=True):
            one[: video.shape[0], : video.shape[1]] = video
        index = index.to(device)
        spare = torch.cat([vectors, vectors.new_zeros(1, dim)])
        tokens, there = spare[index], index >= 0  # [V, F, P, D]
        means = tokens.sum(dim=2) / there.sum(dim=2).clamp(min=1).unsqueeze(-1)
        sizes = [len(video) for video in videos]
        wanted = [max(keep_count(self.segments, size), min(size, 1)) for size in sizes]
        first = noise[index.amax(dim=2)] if places else means[..., 0]
        own, _ = density_peaks(means, sizes, wanted, [min(_NEIGHBOURS, size) for size in sizes], first)
        scenes = [scenes_of(labels[:size]) for labels, size in zip(own.tolist(), sizes, strict=True)]

        most = max(map(len, scenes), default=0)
        scene = torch.full((len(videos), frames), most)
        length = torch.zeros(len(videos), most + 1)
        for video, parts in enumerate(scenes):
            scene[video, : sum(parts)] = torch.repeat_interleave(torch.arange(len(parts)), torch.tensor(parts))
            length[video, : len(parts)] = torch.tensor(parts, dtype=torch.float32)
        scene, length = scene.to(device)[:, :, None, None], length.to(device)[:, :, None]

        def summed(what: Tensor) -> Tensor:
            """[V, F, P, d] -> [V, scenes + 1, P, d]."""
            return what.new_zeros(len(videos), most + 1, *what.shape[2:]).scatter_add(1, scene.expand_as(what), what)

        directions = unit(tokens)
        alike = summed(directions).square().sum(dim=-1) - summed(directions.square().sum(dim=-1, keepdim=True))[..., 0]
        whole = summed(there.float().unsqueeze(-1))[..., 0] == length
        static = whole & (length > 1) & (alike / (length * (length - 1)).clamp(min=1) > self.tau)
        begins = torch.tensor([[sum(parts[:i]) if i < len(parts) else 0 for i in range(most + 1)] for parts in scenes])
        begins = begins.view(len(videos), most + 1, 1).to(device).expand(-1, -1, places)
        home = index.gather(1, begins).masked_fill(~static, len(vectors))
        mean = summed(tokens) / length.clamp(min=1).unsqueeze(-1)
        vectors = spare.index_copy(0, home.flatten(), mean.flatten(0, 2))[:-1]
        host = static.cpu()
        pairs = zip(host, scenes, videos, strict=True)
        still = [one[: len(parts), : video.shape[1]] for one, parts, video in pairs]
        return scenes, still, vectors

    def _groups(
        self, videos: Sequence[Tensor], scenes: Sequence[tuple[int, ...]], still: Sequence[Tensor]
    ) -> list[TokenGroup]:
        """Static tokens of each scene, then the dynamic ones of each of its frames, where there are any."""
        found: list[TokenGroup] = []
        for number, (video, parts, static) in enumerate(zip(videos, scenes, still, strict=True)):
            begin = 0
            for scene, frames in enumerate(parts):
                inside = video[begin : begin + frames]
                sets = [(True, inside[0][static[scene]]), *((False, frame[~static[scene]]) for frame in inside)]
                for is_static, members in sets:
                    members = members[members >= 0]
                    n = len(members)
                    if n:
                        left = max(keep_count(self.clusters, n), 1) if n > _SMALL else n
                        found.append(TokenGroup(number, scene, is_static, members, left))
                begin += frames
        return found


def scenes_of(labels: Sequence[int]) -> tuple[int, ...]:
    """Frames in each scene, of the labels of all frames."""
    runs = [(label, len(list(run))) for label, run in groupby(labels)]
    longest = {label: max(n for other, n in runs if other == label) for label, _ in runs}
    found: list[int | None] = []
    for label, n in runs:
        found += [label if n == longest[label] > 1 else None] * n
    place = 0
    while place < len(found):
        end = place + next((i for i, label in enumerate(found[place:]) if label is not None), len(found) - place)
        if end > place:
            left, right = found[:place][::-1], found[end:]
            beside = [(side[0], len(list(next(groupby(side))[1]))) for side in (left, right) if side]
            # The longer one, the left one of equals; all is one scene where no run has stayed.
            label = max(beside, key=lambda run: run[1])[0] if beside else 0
            found[place:end] = [label] * (end - place)
        place = end + 1
    return tuple(len(list(run)) for _, run in groupby(found))


def _videos(site: LayerSite) -> tuple[list[int], list[Tensor]]:
    """The row of each video, and on the host its int64 [F, P]: numbers b N + i of its tokens, -1 where none is."""
    import torch

    grid = site.grid
    names = torch.stack([grid.image * 2 + grid.plane, grid.frame, grid.row, grid.col], dim=-1).cpu()
    rows: list[int] = []
    videos: list[Tensor] = []
    for row, n in enumerate(site.n_visual):
        tokens = (names[row, :n, 2] >= 0).nonzero().flatten()
        for one in names[row, tokens, 0].unique().tolist():
            mine = tokens[names[row, tokens, 0] == one]
            frame, at = names[row, mine, 1].unique(return_inverse=True)
            place, where = names[row, mine, 2:].unique(dim=0, return_inverse=True)
            index = torch.full((len(frame), len(place)), -1)
            index[at, where] = mine + row * names.shape[1]
            rows.append(row)
            videos.append(index)
    return rows, videos


def _padded(members: Sequence[Tensor], wide: int) -> Tensor:
    """int64 [G, wide]: one row each, -1 behind."""
    import torch

    found = torch.full((len(members), wide), -1)
    for row, one in zip(found, members, strict=True):
        row[: len(one)] = one
    return found
