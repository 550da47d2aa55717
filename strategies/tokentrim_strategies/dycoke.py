"""``dycoke``: fewer tokens where frames repeat each other, and at each step only the visual entries that count."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import BaseModel, Field

from tokentrim import (
    LayerSite,
    ModelShape,
    Need,
    Parts,
    PositionPolicy,
    PromptInfo,
    Schedule,
    Selection,
    SpatialSelector,
    Stage,
    StepSite,
    Strategy,
    TemporalSelector,
    keep_count,
)
from tokentrim_strategies._keeping import Share, check_boundary
from tokentrim_strategies._video import earlier

if TYPE_CHECKING:
    from torch import Tensor

Version = Literal["paper", "code"]


class _ThinningParameters(BaseModel):
    """Parameters of :class:`FrameThinning`, which :class:`DyCoke` shares."""

    keep_ratio: Share = Field(default=0.3, description="share kept of the tokens of a frame that is thinned (1 - k)")
    version: Version = Field(default="paper", description="the method as the paper has it, or as released")


class FrameThinning(_ThinningParameters, SpatialSelector):
    """Drop, in three of four frames, the tokens that are most like an earlier frame: the first half of ``dycoke``."""

    name: ClassVar[str] = "dycoke-frames"
    stage: ClassVar[Stage] = "input"
    needs: ClassVar[frozenset[Need]] = frozenset({Need.FEATURES, Need.GRID})
    count_is_static: ClassVar[bool] = False

    def schedule(self, shape: ModelShape, n_visual: int) -> Schedule:
        """At the input; at most everything, as of images."""
        return Schedule.of({0: n_visual})

    def select(self, site: LayerSite, count: Tensor) -> Selection:
        """Rank within each thinned frame, the least similar first."""
        import torch

        from tokentrim import ranks_within, unit

        grid, width = site.grid, site.ids.shape[1]
        placed = site.valid & (grid.row >= 0)
        back, lost = self._references(site, placed)
        thinned = back > 0
        if not width:
            return Selection.everything(site.n_visual, site.device)

        reference, there = earlier(grid, placed, back)
        towards = unit(site.features)
        reference = reference.unsqueeze(-1).expand_as(towards)
        similar = (towards * towards.gather(1, reference)).sum(dim=-1).masked_fill(~there, -2.0)
        site.note(-similar.masked_fill(~thinned, -1.0), "chooses within each frame that is thinned")

        frame = ((grid.image << 16) + grid.frame).masked_fill(~thinned, -1)
        frames = frame.sort(dim=1).values
        group, ends = torch.searchsorted(frames, frame), torch.searchsorted(frames, frame, right=True)
        sizes = (ends - group).masked_fill(~thinned, 0)
        quota = torch.tensor([keep_count(self.keep_ratio, size) for size in range(int(sizes.max()) + 1)])
        best = ranks_within(-similar, group) < quota.to(site.device)[sizes]
        mask = site.valid & ~lost & (~thinned | best)
        return Selection.from_mask(mask, tuple(mask.sum(dim=1).tolist()))

    def _references(self, site: LayerSite, placed: Tensor) -> tuple[Tensor, Tensor]:
        """How many frames before a token's own the one that it is compared with is (0: none); tokens that are lost."""
        import torch

        frame, image = site.grid.frame.masked_fill(~placed, 0), site.grid.image.masked_fill(~placed, 0)
        phase = frame % 4
        back = torch.where(phase == 2, 2, phase % 2).masked_fill(~placed, 0)
        if self.version == "paper":
            return back, torch.zeros_like(placed)
        longest = torch.zeros_like(frame).scatter_reduce(1, image, frame + 1, "amax").gather(1, image)
        back = back.masked_fill((phase == 2) & (frame >= longest - 2), 0)
        return back, placed & (longest >= 5) & (longest % 2 == 1) & (frame == longest - 1)


class _ReadingParameters(BaseModel):
    """Parameters of :class:`StepReads`, which :class:`DyCoke` shares."""

    layer: int = Field(
        default=3, ge=1, description="layers from this one on (0-based) read by the row of the one before"
    )
    read_ratio: Share = Field(default=0.3, description="share of the visual entries that such a layer reads (1 - p)")
    stable: float = Field(
        default=0.9, ge=-1, allow_inf_nan=False,
        description="cosine between two steps' rows from which on nothing is chosen anew",
    )  # fmt: skip


@dataclass
class _Reads:
    """What one prompt remembers: the step that was last decided, its row [B, N], and what it reads, bool [B, N]."""

    step: int = 0
    row: Tensor | None = None
    chosen: Tensor | None = None
    counts: tuple[int, ...] = ()

    def select_rows(self, index: Tensor) -> None:
        """Follow beams that change places."""
        if self.row is not None and self.chosen is not None:
            self.row, self.chosen = (one.index_select(0, index.to(one.device)) for one in (self.row, self.chosen))
            self.counts = tuple(self.counts[row] for row in index.tolist())


class StepReads(_ReadingParameters, TemporalSelector):
    """Read, in deep layers, the visual entries that an earlier layer attends to most: the other half of ``dycoke``."""

    name: ClassVar[str] = "dycoke-reads"
    needs: ClassVar[frozenset[Need]] = frozenset({Need.LAST_ROW})

    def prepare(self, shape: ModelShape) -> None:
        """Refuse a layer that is not there."""
        check_boundary(self, "layer", self.layer, shape)

    def begin(self, prompt: PromptInfo) -> _Reads:
        """Nothing is chosen yet."""
        return _Reads()

    def evicts(self) -> bool:
        """What is not read stays."""
        return False

    def row_layer(self, layer: int, shape: ModelShape) -> int:
        """The one before ``layer``."""
        return self.layer - 1 if layer >= self.layer else layer

    def count(self, step: int, layer: int, n_prefill: int, shape: ModelShape) -> int:
        """The share, from ``layer`` on."""
        return keep_count(self.read_ratio, n_prefill) if layer >= self.layer else n_prefill

    def select(self, site: StepSite, count: Tensor) -> Selection:
        """One choice for all layers of a step."""
        state: _Reads = site.state
        if site.layer < self.layer:
            return Selection.everything(site.n_visual, site.device)
        if state.step != site.step or state.chosen is None:
            self._choose(site, state, tuple(count.tolist()))
        return Selection.from_mask(state.chosen.to(site.device), state.counts)  # type: ignore[union-attr]

    def _choose(self, site: StepSite, state: _Reads, counts: tuple[int, ...]) -> None:
        import torch

        row = site.last_row.float().mean(dim=1).masked_fill(~site.valid, 0.0)
        order = row.masked_fill(~site.valid, -1.0).argsort(dim=1, descending=True, stable=True)
        first = torch.tensor(counts, device=site.device).unsqueeze(1)
        best = torch.arange(row.shape[1], device=site.device) < first
        chosen = torch.zeros_like(site.valid).scatter(1, order, best.expand_as(order))
        if state.row is not None and state.chosen is not None:
            similar = torch.cosine_similarity(row, state.row.to(row.device), dim=1)
            chosen, counts = self._kept_up(site, similar >= self.stable, chosen, state.chosen.to(row.device), counts)
        state.step, state.row, state.chosen, state.counts = site.step, row, chosen, counts

    def _kept_up(
        self, site: StepSite, stable: Tensor, new: Tensor, old: Tensor, counts: tuple[int, ...]
    ) -> tuple[Tensor, tuple[int, ...]]:
        """What is read, and how much, where ``stable`` [B] says which rows look where they looked before."""
        import torch

        return torch.where(stable.unsqueeze(1), old, new), counts


class StepReadsAsReleased(StepReads):
    """As :class:`StepReads`, but where a row is like that of the step before, everything is read."""

    name: ClassVar[str] = "dycoke-reads-as-released"
    count_is_static: ClassVar[bool] = False

    def count(self, step: int, layer: int, n_prefill: int, shape: ModelShape) -> int:
        """Everything, at most."""
        return n_prefill

    def select(self, site: StepSite, count: Tensor) -> Selection:
        """The share, where it is not everything."""
        import torch

        return super().select(site, torch.tensor([keep_count(self.read_ratio, n) for n in count.tolist()]))

    def _kept_up(
        self, site: StepSite, stable: Tensor, new: Tensor, old: Tensor, counts: tuple[int, ...]
    ) -> tuple[Tensor, tuple[int, ...]]:
        import torch

        rows = zip(stable.tolist(), site.n_visual, counts, strict=True)
        return torch.where(stable.unsqueeze(1), site.valid, new), tuple(n if whole else some for whole, n, some in rows)


class DyCoke(_ThinningParameters, _ReadingParameters, Strategy):
    """Compress a video twice: thin out frames that repeat each other, then read few visual entries at each step.

    *Frames* (at the input). Of frames 4i, 4i+1, 4i+2, 4i+3 the first stays whole; the second is compared with the
    first, the third with the first, the fourth with the third, token by token in the same place, by the cosine of
    projected features. Of each compared frame with P tokens the ``floor(keep_ratio P)`` least similar stay. The
    paper calls this merging; its code drops, and so does this.

    *Steps* (decode). With ``a_t`` the row of the current token in layer ``layer - 1``, mean over heads, over the n
    visual entries: layers from ``layer`` on read the ``floor(read_ratio n)`` entries with the largest ``a_t``, and all
    text. Where ``cos(a_t, a_(t-1)) >= stable`` they read what they read before. Nothing leaves the cache.

    ``version: paper`` (default) is that. ``code`` is the release: the last four frames keep their third one whole; an
    odd number of frames (from 5 on; the code raises below) loses the last; and where rows are alike everything is
    read, because the layers in front forget the choice. The code puts the tokens of a thinned frame in order of rising
    similarity, and always reads the last image token; here they keep their order, and it is one of n.

    An image is a video of one frame: nothing is thinned, so only the second half acts (ours). Several videos are
    thinned each by itself; tokens without a place (row ends) stay (ours). Frames are the model's own: where two are
    merged before the language model (Qwen), the merged ones. How many frames there are is known with the prompt, so
    schedules say at most.

    When it fails: the camera moves (then places mean nothing), or frames are seconds apart; answers that begin to look
    elsewhere slowly keep the old choice. Reads are masked here, not gathered, which saves no memory and no time.

    Cost: cosines of neighbouring frames, O(N D), and two reads of the device per prompt; one attention row per step.

    Parameters: ``keep_ratio`` (share kept of a thinned frame; 1 - k, paper .3), ``layer`` (3), ``read_ratio`` (share
    read of the entries; 1 - p, paper and README .3, evaluation default .2), ``stable`` (.9), ``version``.

    ```bibtex
    @inproceedings{tao2025dycoke,
      title={{DyCoke}: Dynamic Compression of Tokens for Fast Video Large Language Models},
      author={Tao, Keda and Qin, Can and You, Haoxuan and Sui, Yang and Wang, Huan},
      booktitle={Proceedings of the Computer Vision and Pattern Recognition Conference (CVPR)},
      pages={18992--19001},
      year={2025},
      note={arXiv:2411.15024}
    }
    ```
    """

    name: ClassVar[str] = "dycoke"
    stage: ClassVar[Stage] = "input"
    needs: ClassVar[frozenset[Need]] = FrameThinning.needs | StepReads.needs
    count_is_static: ClassVar[bool] = False
    budget_knob: ClassVar[str | None] = "read_ratio"

    positions: PositionPolicy = Field(default="keep", description="position ids of kept tokens after pruning")

    def parts(self) -> Parts:
        """The frames' half and the steps' half with these parameters."""
        reads = StepReads if self.version == "paper" else StepReadsAsReleased
        return Parts(
            (FrameThinning(**self.model_dump(include={"positions", *_ThinningParameters.model_fields})),),
            reads(**self.model_dump(include={*_ReadingParameters.model_fields})),
        )
