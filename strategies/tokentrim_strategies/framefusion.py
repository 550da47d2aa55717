"""``framefusion``: merge what repeats from frame to frame in the first layers, then prune once by attention."""

from __future__ import annotations

from dataclasses import dataclass, field
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
    keep_count,
    prune_count,
)
from tokentrim_strategies._keeping import Share
from tokentrim_strategies._video import FRAME_BITS, place_keys

if TYPE_CHECKING:
    from torch import Tensor


@dataclass
class Fused:
    """How far one row is: the shares that its rounds merged, whether it still merges, whether all is done."""

    merged: list[float] = field(default_factory=list[float])
    merging: bool = True
    done: bool = False

    def share(self, cost: float, layers: int) -> float:
        """Of the current tokens, how many must go now so that all layers see ``cost`` of the first, in the mean."""
        left, seen = 1.0, 0.0
        for share in self.merged:
            left *= 1 - share
            seen += left
        to_come = max(layers - len(self.merged), 1) * left
        return min(max(1 - (layers * cost - seen) / to_come, 0.0), 1.0)


class FrameFusion(SpatialSelector):
    """Merge tokens that are like the same place one frame before, layer by layer; then cut once, to meet a cost.

    At boundaries 0, 1, 2, ... a token's similarity is the cosine of its hidden state and that of the token in the same
    place of the frame before (of what is left of both). With n tokens now, m of them at least ``similarity``, L layers,
    and ``s_i`` the share of the first number that layer i had, the share that must go to meet ``cost`` is

        ``r = 1 - (cost L - sum of s_i) / ((L - b) s_b)``  at boundary b, with ``s_b`` of before it.

    - ``m < r n``: all m merge, each run of them into the token before it, which becomes the mean. Where
      ``m < ratio n``, this was the last round, and the next boundary prunes.
    - Otherwise only the ``floor(r n)`` most similar merge, and all is done.
    - Pruning keeps the ``round(n (1 - r))`` tokens with the highest ``(1/H) sum_h A[h, T-1, j]`` of layer b-1.

    Follows the released code, but for two things. The code acts between attention and MLP of layer b-1, so that layer's
    cache keeps what leaves; here it acts before layer b, and the MLP of b-1 still sees it. The code reckons with 28
    layers whatever the model has (``layers: 28``; by default the model's own). Ours: where the budget is spent
    before pruning, nothing is kept (the code raises), and from boundary ``latest`` on it does not merge but prunes.

    An image is a video of one frame (ours): nothing merges, and boundary 1 prunes by attention, as ``fastv`` does with
    k = 1. Several videos merge each by itself and share the cut; tokens without a place merge with nothing (ours).

    When it fails: where the camera moves or frames lie far apart little merges, and attention of layer 0 or 1 decides,
    which favours the end of the raster. When tokens leave depends on the video: plans are upper bounds.

    Cost: cosines of neighbouring frames per round, O(N D), one attention row in each layer before ``latest``, and one
    read of the device per round.

    Parameters: ``cost`` (share of the tokens that is left, mean over layers; .3 in the code), ``similarity`` (a cosine,
    .6), ``ratio`` (share of the current tokens, .1), ``layers`` (28 in the code), ``latest`` (a boundary).

    ```bibtex
    @inproceedings{fu2025framefusion,
      title={{FrameFusion}: Combining Similarity and Importance for Video Token Reduction on Large Vision Language
             Models},
      author={Fu, Tianyu and Liu, Tengxuan and Han, Qinghao and Dai, Guohao and Yan, Shengen and Yang, Huazhong and
              Ning, Xuefei and Wang, Yu},
      booktitle={Proceedings of the IEEE/CVF International Conference on Computer Vision (ICCV)},
      year={2025},
      note={arXiv:2501.01986}
    }
    ```
    """

    name: ClassVar[str] = "framefusion"
    stage: ClassVar[Stage] = "prefill"
    needs: ClassVar[frozenset[Need]] = frozenset({Need.HIDDEN, Need.GRID, Need.LAST_ROW})
    count_is_static: ClassVar[bool] = False
    merges: ClassVar[bool] = True
    budget_knob: ClassVar[str | None] = "cost"

    cost: Share = Field(default=0.3, description="share of the visual tokens that layers see, mean over layers")
    similarity: float = Field(
        default=0.6, ge=-1, le=1, allow_inf_nan=False, description="cosine from which on a token is merged"
    )
    ratio: Share = Field(default=0.1, description="a round that merges less than this share of the tokens is the last")
    layers: int | None = Field(
        default=None, ge=1, description="decoder layers that the cost is reckoned with; None = the model's"
    )
    latest: int = Field(default=8, ge=1, description="boundary that prunes, whatever could still be merged")

    def schedule(self, shape: ModelShape, n_visual: int) -> Schedule:
        """At most what rounds that go on leave, and in the end what the cost does."""
        last = min(self.latest, shape.n_layers - 1)
        final = min(n_visual, keep_count(self.cost, n_visual) + 1)
        counts, left = {0: n_visual}, n_visual
        for boundary in range(1, last + 1):
            left = prune_count(self.ratio, left)
            counts[boundary] = final if boundary == last else max(left, final)
        return Schedule.of(counts)

    def needed_at(self, boundary: int) -> frozenset[Need]:
        """No attention at the input."""
        return self.needed() if boundary else self.needed() - {Need.LAST_ROW}

    def begin(self, prompt: PromptInfo) -> list[Fused]:
        """Every row merges at first."""
        return [Fused(done=n == 0) for n in prompt.n_visual]

    def select(self, site: LayerSite, count: Tensor) -> Selection:
        """One round of each row that is not done."""
        import torch

        from tokentrim import merge_into, ranks_within

        rows: list[Fused] = site.state
        if all(row.done for row in rows):
            return Selection.everything(site.n_visual, site.device)
        last = site.boundary == max(min(self.latest, site.shape.n_layers - 1), 1)
        going = [row.merging and not row.done and not last for row in rows]
        cuts = any(not row.done and not goes for row, goes in zip(rows, going, strict=True))
        similar = order = None
        alike = [0] * len(rows)
        if any(going):
            similar, order = self._similar(site)
            alike = (similar >= self.similarity).sum(dim=1).tolist()
        layers = self.layers or site.shape.n_layers
        kept = [self._step(*row, layers) for row in zip(rows, going, alike, site.n_visual, strict=True)]
        if tuple(kept) == site.n_visual:
            return Selection.everything(site.n_visual, site.device)

        one, mask = torch.zeros_like(site.ids), site.valid
        counts = torch.tensor(kept, device=site.device).unsqueeze(1)
        merges = torch.tensor(going, device=site.device).unsqueeze(1)
        if cuts:
            row = site.last_row.float().mean(dim=1).masked_fill(~site.valid, -1.0)
            mask = mask & (merges | (ranks_within(row, one) < counts))
        if similar is None or order is None:
            return Selection.from_mask(mask, tuple(kept))
        goes = site.valid.sum(dim=1, keepdim=True) - counts
        merged = merges & (ranks_within(similar, one) < goes)
        mask = mask & ~merged
        # Along one place, what merges goes into the last token before it that does not.
        places = torch.arange(mask.shape[1], device=site.device)
        into = torch.where(merged.gather(1, order), -1, places).cummax(dim=1).values
        into = torch.empty_like(order).scatter(1, order, order.gather(1, into))
        return merge_into(into.masked_fill(~mask.gather(1, into), -1), tuple(kept))

    def _similar(self, site: LayerSite) -> tuple[Tensor, Tensor]:
        """[B, N], each token's cosine with that of its place in the frame before, -2 without one; and an order in
        which the two stand side by side.
        """
        import torch

        from tokentrim import rows_at, unit

        keys, order = place_keys(site.grid, site.valid & (site.grid.row >= 0)).sort(dim=1, stable=True)
        directions = rows_at(unit(site.hidden), order)
        cosine = (directions[:, 1:] * directions[:, :-1]).sum(dim=-1)
        place = keys >> FRAME_BITS
        beside = (place[:, 1:] == place[:, :-1]) & (keys[:, 1:] >= 0)
        cosine = torch.nn.functional.pad(cosine.masked_fill(~beside, -2.0), (1, 0), value=-2.0)
        return torch.empty_like(cosine).scatter(1, order, cosine), order

    def _step(self, row: Fused, going: bool, alike: int, n: int, layers: int) -> int:
        """What one row keeps of ``n`` tokens, of which ``alike`` could merge."""
        share = row.share(self.cost, layers)
        if row.done or not n:
            return n
        if not going:
            row.done = True
            return round(n * (1 - share))
        if alike / n < share:
            row.merged.append(alike / n)
            row.merging = alike / n >= self.ratio
            return n - alike
        row.done = True
        return n - int(share * n)
