"""``pyramiddrop``: half of the visual tokens go at each of three depths, by what the last prompt token looks at."""

from __future__ import annotations

from fractions import Fraction
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from tokentrim import LayerSite, ModelShape, Need, ReplacedBy, Schedule, SpatialScorer, Stage, keep_count
from tokentrim_strategies._keeping import Share, ShareOrNone
from tokentrim_strategies._stages import Staged

if TYPE_CHECKING:
    from torch import Tensor


class PyramidDrop(Staged, SpatialScorer):
    """Halve the visual tokens at a quarter, half and three quarters of the depth; the most attended ones stay.

    At cut s = 1, 2, ..., before layer b, ``floor(n keep_ratio^s)`` of the n original tokens stay, or
    ``floor(n shares[s-1])``. Score of visual token j, with A the softmax over all keys and H heads:

    - ``row="own"``: ``(1/H) sum_h A_b[h, last, j]``, the row that the last prompt token has in layer b itself: that
      layer's norm, query and key projections and RoPE on the states that enter it, at their positions after the cuts
      before;
    - ``row="before"``: the row of layer b-1, which has run already (ours; FastV's reading, next to free).

    Follows the released code, which ranks by the layer's own row, rounds down and renumbers positions after every cut
    (``positions: renumber``; our default keeps them). Its boundaries are 8, 16 and 24 of 32 layers, with shares of .5,
    .25 and .125, the only published setting; a model of L layers is cut before layers ``floor(b L / 32)`` (ours). The
    192, 128 and 64 tokens that other papers print for it have settings of their own, which nobody published. Several
    images share one ranking (ours); its authors support one round of question and answer.

    When it fails: its budget has a floor, because a quarter of the depth sees every token: below a third of the tokens
    the boundaries must move, and 64 of 576 need ``keep_ratio`` below .5. Last-row attention prefers the end of the
    raster, more so in shallow layers; papers report it far behind at 64 tokens and on Qwen2.5-VL.

    Cost: at each cut, the norm and projections of one layer once more and one attention row per head, beside the fused
    kernel; ``before``: the row alone.

    Parameters: ``keep_ratio``, share that each cut keeps of the one before, or ``shares``, of the original tokens, one
    for each cut; ``boundaries`` (decoder layers, counted from 0); ``row``.

    ```bibtex
    @inproceedings{xing2025pyramiddrop,
      title={{PyramidDrop}: Accelerating Your Large Vision-Language Models via Pyramid Visual Redundancy Reduction},
      author={Xing, Long and Huang, Qidong and Dong, Xiaoyi and Lu, Jiajie and Zhang, Pan and Zang, Yuhang and
              Cao, Yuhang and He, Conghui and Wang, Jiaqi and Wu, Feng and Lin, Dahua},
      booktitle={Proceedings of the IEEE/CVF Conference on Computer Vision and Pattern Recognition (CVPR)},
      year={2025},
      note={arXiv:2410.17247}
    }
    ```
    """

    name: ClassVar[str] = "pyramiddrop"
    stage: ClassVar[Stage] = "prefill"
    needs: ClassVar[frozenset[Need]] = frozenset({Need.NEXT_ROW, Need.LAST_ROW})
    budget_knob: ClassVar[str | None] = "keep_ratio"
    published: ClassVar[tuple[int, ...]] = (8, 16, 24)

    keep_ratio: Annotated[ShareOrNone, ReplacedBy("shares")] = Field(
        default=0.5, description="share that each cut keeps of what the one before kept"
    )
    shares: tuple[Share, ...] | None = Field(
        default=None, description="shares of the original tokens kept from each cut on, instead of keep_ratio"
    )
    row: Literal["own", "before"] = Field(
        default="own", description="whose attention row ranks: that of the layer behind the cut, or of the one before"
    )

    @model_validator(mode="after")
    def _one_share_each(self) -> PyramidDrop:
        if self.shares is not None:
            self.one_share_each("shares", self.shares)
        return self

    def needed(self) -> frozenset[Need]:
        """The one row that ``row`` names."""
        return frozenset({Need.NEXT_ROW if self.row == "own" else Need.LAST_ROW})

    def schedule(self, shape: ModelShape, n_visual: int) -> Schedule:
        """A share of the original tokens at each cut."""
        cuts = self.cuts(shape)
        ratio = Fraction(str(self.keep_ratio or 0.0))
        shares = [ratio ** (s + 1) for s in range(len(cuts))] if self.shares is None else self.shares
        return Schedule.of({cut: keep_count(share, n_visual) for cut, share in zip(cuts, shares, strict=True)})

    def score(self, site: LayerSite) -> Tensor:
        """Attention of the last prompt token, mean over heads."""
        return (site.next_row if self.row == "own" else site.last_row).mean(dim=1)
