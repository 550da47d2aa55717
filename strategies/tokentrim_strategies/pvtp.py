"""``pvtp``: progressive visual-token pruning, the spatial part of ST^3."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import BaseModel, Field
from torch import Tensor

from tokentrim.budget import prune_count
from tokentrim.schedule import Schedule
from tokentrim.shape import ModelShape
from tokentrim.sites import LayerSite, Need
from tokentrim.strategy import SpatialScorer, Stage
from tokentrim_strategies._budget import check_boundary


class PVTPParameters(BaseModel):
    """Parameters of :class:`PVTP`, which :class:`~tokentrim_strategies.st3.ST3` shares."""

    start: int = Field(default=2, ge=1, description="first boundary at which tokens go")
    stride: int = Field(default=4, ge=1, description="layers from one pruning boundary to the next")
    prune_ratio: float = Field(
        default=0.30, ge=0, le=1, allow_inf_nan=False, description="share that goes at every pruning boundary"
    )
    rule: Literal["geometric", "linear"] = Field(
        default="geometric", description="share of the current tokens (geometric) or of the original ones (linear)"
    )
    query: Literal["last", "text"] = Field(
        default="last", description="whose attention counts: the last prompt token's, or the mean of all text tokens"
    )


class PVTP(PVTPParameters, SpatialScorer):
    """Remove the least attended visual tokens step by step: at boundaries start, start + stride, ... below L.

    Score of visual token j at boundary b, with A the softmax over all keys in layer b-1, the previous layer:
    ``(1/H) sum_h A[h, last, j]``. Count, from n tokens at first and g before the boundary:

    - ``rule="geometric"``: ``floor((1 - prune_ratio) g)``;
    - ``rule="linear"``: ``max(0, floor(g - prune_ratio n))``.

    Both floors are exact. Known from the paper: pruning progresses with depth, the ranking comes from the previous
    layer's attention, the parameters are a stride and a ratio. Ours, as its full text and code were not available to
    us: the row of the last prompt token and the mean over heads (U1; ``query="text"`` is the option), the ratio of the
    current count (U2; ``linear`` is the switch), the start (U3), the default values (U4, calibrated by us), no sharing
    of queries or keys between layers (U7), original position ids (U8), one ranking over all images (U13).

    When it fails: as FastV does, since it trusts last-row attention of early layers at the first boundary; later
    boundaries correct nothing, because dropped tokens do not return. ``linear`` reaches zero in deep models.

    Cost: one attention row per head at each pruning boundary, O(g d), beside the fused kernel.

    Parameters: ``start`` and ``stride`` in layers, ``prune_ratio`` (share *dropped* per boundary), ``rule``, ``query``.

    ```bibtex
    @inproceedings{zhuang2025st3, booktitle={AAAI}, year={2025}, doi={10.1609/aaai.v39i10.33201},
      title={{ST$^3$}: Accelerating Multimodal Large Language Model by Spatial-Temporal Visual Token Trimming},
      author={Zhuang, Jiedong and Lu, Lu and Dai, Ming and Hu, Rui and Chen, Jian and Liu, Qiang and Hu, Haoji}}
    ```
    """

    name: ClassVar[str] = "pvtp"
    stage: ClassVar[Stage] = "prefill"
    needs: ClassVar[frozenset[Need]] = frozenset({Need.LAST_ROW, Need.TEXT_ROWS})
    budget_knob: ClassVar[str | None] = "prune_ratio"

    def needed(self) -> frozenset[Need]:
        """The one kind of row that ``query`` reads."""
        return frozenset({Need.LAST_ROW if self.query == "last" else Need.TEXT_ROWS})

    def schedule(self, shape: ModelShape, n_visual: int) -> Schedule:
        """The counts of ``rule``, at each pruning boundary of the model."""
        check_boundary(self, "start", self.start, shape)
        counts: dict[int, int] = {}
        current, loss = n_visual, n_visual - prune_count(self.prune_ratio, n_visual)
        for boundary in range(self.start, shape.n_layers, self.stride):
            current = max(0, current - loss) if self.rule == "linear" else prune_count(self.prune_ratio, current)
            counts[boundary] = current
        return Schedule.of(counts)

    def score(self, site: LayerSite) -> Tensor:
        """Attention in the previous layer, mean over heads (and over text tokens)."""
        if self.query == "last":
            return site.last_row.mean(dim=1)
        rows, valid = site.text_rows
        rows = rows.mean(dim=1).masked_fill(~valid.unsqueeze(-1), 0.0)  # [B, T, N]
        return rows.sum(dim=1) / valid.sum(dim=1, keepdim=True).clamp(min=1)
