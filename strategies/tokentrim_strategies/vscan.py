"""``vscan``: what a shallow block looks at in every window and a deep one in the whole picture; later, the question."""

from __future__ import annotations

from fractions import Fraction
from typing import TYPE_CHECKING, ClassVar, Final, Literal

from pydantic import Field, model_validator

from tokentrim import LayerSite, ModelShape, Need, Schedule, Selection, SpatialSelector, Stage, complaint, keep_count
from tokentrim_strategies._keeping import ShareOrNone
from tokentrim_strategies._shares import KeepingShares
from tokentrim_strategies._stages import Staged

if TYPE_CHECKING:
    from torch import Tensor

    from tokentrim import Groups

_ROWS: Final = {"own": Need.NEXT_ROW, "plain": Need.NEXT_ROW_PLAIN, "before": Need.LAST_ROW}
_TOWER: Final = frozenset({Need.VISION_ROWS, Need.HIDDEN, Need.GRID})


class VScan(KeepingShares, Staged, SpatialSelector):
    """Keep K tokens at the input, half of them window by window, and merge the rest; cut again inside the model.

    With ``a_j = (1/H) sum_h A[h, CLS, j]`` in a block of the vision tower, at boundary 0:

    - local: ``floor(K/2)`` tokens by a of the shallow block ``local_block``. ``windows: even``: 16 windows of equal
      size keep ``floor(floor(K/2) / 16)`` each; ``capped``: tokens in falling order, of each window of 4 x 4 at most
      ``ceil(floor(K/2) / windows)``, a window at the right or lower border as large as what is left of the grid;
    - global: the others by a of the block ``block``, by default the one whose output becomes the features;
    - every other token joins the kept one that it is most like (cosine of projected features), and each kept one
      becomes the plain mean of all that joined it and itself.

    Later, before each layer of ``boundaries``, a third of the tokens stay: those with the highest attention
    ``(1/H) sum_h A[h, last, j]`` of the last prompt token, in the layer that follows (``row: own``), without its rotary
    embedding (``plain``), or in the layer before (``before``, ours: it has run already).

    Follows the released code, which differs between families: for LLaVA ``even``, ``own``, boundary 16 of 32 layers,
    numbers instead of shares (``late_counts``) and positions numbered anew (``positions: renumber``); for Qwen2.5-VL
    ``capped``, ``plain``, boundary 14 of 28, ``late_ratio: 0.333`` and positions kept. In ``even``, floors lose tokens
    (of 50 there are 41): ``total: released`` does without them, ``exact`` (ours) gives them to the global half. Blocks
    are the 6th of CLIP's 24 and the 8th of Qwen2.5-VL's 32, which is a quarter of the depth, and the features'. Where
    the tower has no [CLS], a is the attention that a token receives, as in the code for Qwen. Windows are those of each
    image, frame or tile, which decide for themselves with parts of K in proportion to their tokens, as the code does
    with tiles of equal size; where 4 does not divide a grid, ``even`` windows differ by one row or column (ours).

    When it fails: the first stage never reads the question, and means blur small text. The second favours the end of
    the raster, as every last row does, less so in ``plain``. Half of the layers still run with all of K.

    Cost: one attention row per head in two blocks of the tower, cosines of N x K tokens, then the norm and projections
    of one layer once more at each cut.

    Parameters: ``keep_ratio`` (share kept at the input) or ``keep_count`` (K; 288, 192 and 96 of 576 are 192, 128 and
    64 tokens in the mean of all layers), ``late_ratio`` (share of the tokens left that each later cut keeps; None:
    exactly a third) or ``late_counts`` (tokens per prompt), ``boundaries``, ``windows``, ``row``, ``total``,
    ``local_block``, ``block`` (blocks of the tower, negative = from the end).

    ```bibtex
    @article{zhang2026vscan,
      title={{VScan}: Rethinking Visual Token Reduction for Efficient Large Vision-Language Models},
      author={Zhang, Ce and Ma, Kaixin and Fang, Tianqing and Yu, Wenhao and Zhang, Hongming and Zhang, Zhisong and
              Mi, Haitao and Yu, Dong},
      journal={Transactions on Machine Learning Research},
      year={2026},
      note={arXiv:2505.22654}
    }
    ```
    """

    name: ClassVar[str] = "vscan"
    stage: ClassVar[Stage] = "prefill"
    needs: ClassVar[frozenset[Need]] = _TOWER | frozenset(_ROWS.values())
    merges: ClassVar[bool] = True
    published: ClassVar[tuple[int, ...]] = (16,)

    late_ratio: ShareOrNone = Field(
        default=None, description="share of the tokens left that each later cut keeps; None = exactly a third"
    )
    late_counts: tuple[int, ...] | None = Field(
        default=None, description="tokens per prompt kept from each later cut on, instead of late_ratio"
    )
    windows: Literal["even", "capped"] = Field(
        default="even", description="local half: the same number from each of 16 windows, or at most so many from each"
    )
    row: Literal["own", "plain", "before"] = Field(
        default="own", description="row of the later cuts: of the layer behind, that without RoPE, of the layer before"
    )
    local_block: int | None = Field(
        default=None, description="block of the vision tower for the local half; None = at a quarter of its depth"
    )
    block: int | None = Field(
        default=None, description="block for the global half, -1 = the last; None = that of the features"
    )

    @model_validator(mode="after")
    def _consistent(self) -> VScan:
        if self.late_counts is not None:
            self.one_share_each("late_counts", self.late_counts)
            counts = [*self.late_counts, 0]
            if self.late_ratio is not None or sorted(counts, reverse=True) != counts:
                what, must = "late_counts of strategy 'vscan'", "fall, and take the place of late_ratio"
                raise ValueError(complaint(what, must, self.model_dump(include={"late_counts", "late_ratio"})))
        return self

    def needed(self) -> frozenset[Need]:
        """What the tower shows, and the one row that ``row`` names."""
        return _TOWER | {_ROWS[self.row]}

    def needed_at(self, boundary: int) -> frozenset[Need]:
        """The tower's at the input, the row later."""
        return frozenset({_ROWS[self.row]}) if boundary else _TOWER

    def vision_blocks_of(self, features: int, depth: int) -> tuple[int, ...]:
        """The shallow one and the deep one."""
        local = max(depth // 4 - 1, 0) if self.local_block is None else self.local_block
        return local, features if self.block is None else self.block

    def late(self, cut: int, left: int) -> int:
        """Tokens that the ``cut``-th later cut keeps of ``left``."""
        if self.late_counts is not None:
            return min(self.late_counts[cut], left)
        return keep_count(Fraction(1, 3) if self.late_ratio is None else self.late_ratio, left)

    def schedule(self, shape: ModelShape, n_visual: int) -> Schedule:
        """K at the input, then what each later cut leaves."""
        counts = {0: self.count_of(n_visual)}
        left = counts[0]
        for cut, boundary in enumerate(self.cuts(shape)):
            left = counts[boundary] = self.late(cut, left)
        return Schedule.of(counts)

    def select(self, site: LayerSite, count: Tensor) -> Selection:
        """What the tower attends to, and later what the last prompt token does."""
        from tokentrim import top_selection

        if site.boundary == 0:
            return self._first(site, count)
        scores, counts = getattr(site, _ROWS[self.row].value.replace("-", "_")).mean(dim=1), tuple(count.tolist())
        if self.total == "released":  # the input may have left fewer than were asked for
            cut = self.cuts(site.shape).index(site.boundary)
            counts = tuple(self.late(cut, n) for n in site.n_visual)
        site.note(scores)
        return top_selection(scores, counts, site.n_visual)

    def _first(self, site: LayerSite, count: Tensor) -> Selection:
        """Local and global tokens, each with what is most like it."""
        import torch

        from tokentrim import Groups, merge_into

        pictures = Groups.pictures(site.grid, site.valid)
        budget = pictures.share(count.tolist())
        shallow, deep = site.vision_rows.mean(dim=2).unbind(dim=1)
        local = self._local(site, pictures, shallow, budget // 2)
        site.note(shallow, "chooses the local half, window by window")
        site.note(deep, "chooses the global half among the others")
        lowest = torch.finfo(deep.dtype).min
        rank = pictures.rank(deep.masked_fill(local, lowest))
        taken = pictures.count(local) if self.total == "exact" else budget // 2
        stays = site.valid & (local | (rank < budget - taken))
        counts: tuple[int, ...] = tuple(count.tolist())
        if self.total == "released":
            counts = tuple(stays.sum(dim=1).tolist())
        joins = pictures.nearest(site.hidden, stays, max(counts, default=0))
        into = torch.where(stays, torch.arange(stays.shape[1], device=site.device), joins)
        return merge_into(into.masked_fill(~site.valid | (into == stays.shape[1]), -1), counts)

    def _local(self, site: LayerSite, pictures: Groups, score: Tensor, wanted: Tensor) -> Tensor:
        """bool [B, N]: at most ``wanted`` tokens of each picture, window by window."""
        import torch

        def along(place: Tensor) -> tuple[Tensor, Tensor]:
            """(window along one side, number of windows along it) of each token."""
            nought = torch.zeros_like(place)
            first, last = -pictures.at_rank(-place, nought), pictures.at_rank(place, nought)
            size = last - first + 1
            parts = size.clamp(max=4) if self.windows == "even" else (size // 4).clamp(min=1)
            inside = place - first
            return (inside * parts // size if self.windows == "even" else (inside // 4).minimum(parts - 1)), parts

        (down, rows), (across, cols) = along(site.grid.row.clamp(min=0)), along(site.grid.col.clamp(min=0))
        number, windows = down * cols + across, rows * cols
        rank = pictures.within(number, site.valid).rank(score)
        if self.windows == "even":
            return site.valid & (rank < wanted // windows)
        free = site.valid & (rank < -(-wanted // windows))
        return free & (pictures.rank(score.masked_fill(~free, torch.finfo(score.dtype).min)) < wanted)
