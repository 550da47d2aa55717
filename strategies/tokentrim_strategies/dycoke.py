"""``dycoke``: fewer tokens where frames repeat each other, and at each step only the visual entries that count."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal, cast

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
from tokentrim_strategies._keeping import Flag, Share, check_boundary
from tokentrim_strategies._video import like_earlier

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

        from tokentrim import Groups

        if not site.ids.shape[1]:
            return Selection.everything(site.n_visual, site.device)
        back, lost = self._references(site)
        thinned = back > 0
        differs = -like_earlier(site, back)
        site.note(differs.masked_fill(~thinned, 1.0), "chooses within each frame that is thinned")
        frames = Groups.pictures(site.grid, thinned)
        sizes = frames.size.masked_fill(~thinned, 0)
        quota = torch.tensor([keep_count(self.keep_ratio, size) for size in range(int(sizes.max()) + 1)])
        best = frames.rank(differs) < quota.to(site.device)[sizes]
        mask = site.valid & ~lost & (~thinned | best)
        return Selection.from_mask(mask, tuple(mask.sum(dim=1).tolist()))

    def _references(self, site: LayerSite) -> tuple[Tensor, Tensor]:
        """How many frames before a token's own the one that it is compared with is (0: none); tokens that are lost."""
        import torch

        placed = site.valid & (site.grid.row >= 0)
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
    count_is_static: ClassVar[bool] = cast(bool, Flag["StepReads"](False, lambda own: own.version == "paper"))

    version: Version = Field(default="paper", description="what is read where rows are alike: the same, or everything")

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
        """The share, from ``layer`` on; as released at most everything."""
        reads_all = layer < self.layer or self.version == "code"
        return n_prefill if reads_all else keep_count(self.read_ratio, n_prefill)

    def select(self, site: StepSite, count: Tensor) -> Selection:
        """One choice for all layers of a step."""
        state: _Reads = site.state
        if site.layer < self.layer:
            return Selection.everything(site.n_visual, site.device)
        if state.step != site.step or state.chosen is None:
            self._choose(site, state, count.tolist())
        return Selection.from_mask(state.chosen.to(site.device), state.counts)  # type: ignore[union-attr]

    def _choose(self, site: StepSite, state: _Reads, counts: list[int]) -> None:
        """Anew, but in rows that look where they looked before."""
        import torch

        from tokentrim import marked, top_selection

        released = self.version == "code"
        wanted = tuple(keep_count(self.read_ratio, n) if released else n for n in counts)
        row = site.last_row.float().mean(dim=1).masked_fill(~site.valid, 0.0)
        chosen = marked(top_selection(row, wanted, site.n_visual).kept, row.shape[1])
        if state.row is not None and state.chosen is not None:
            stable = torch.cosine_similarity(row, state.row.to(row.device), dim=1) >= self.stable
            again = site.valid if released else state.chosen.to(row.device)
            chosen = torch.where(stable.unsqueeze(1), again, chosen)
            if released:
                rows = zip(stable.tolist(), site.n_visual, wanted, strict=True)
                wanted = tuple(n if whole else some for whole, n, some in rows)
        state.step, state.row, state.chosen, state.counts = site.step, row, chosen, wanted


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
        return Parts(
            (FrameThinning(**self.model_dump(include={"positions", *_ThinningParameters.model_fields})),),
            StepReads(version=self.version, **self.model_dump(include={*_ReadingParameters.model_fields})),
        )
