"""``pvtp``: progressive visual-token pruning, the spatial part of ST^3."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from tokentrim import LayerSite, ModelShape, Need, PromptInfo, Schedule, SpatialScorer, Stage, prune_count
from tokentrim_strategies._blocks import Blocks
from tokentrim_strategies._keeping import Share, check_boundary
from tokentrim_strategies._scores import losing_rows, text_row_mean

if TYPE_CHECKING:
    from torch import Tensor


class PVTPParameters(Blocks):
    """Parameters of :class:`PVTP`, which :class:`~tokentrim_strategies.st3.ST3` shares."""

    prune_ratio: Share = Field(default=0.50, description="share that goes at every pruning boundary")
    rule: Literal["geometric", "linear"] = Field(
        default="geometric", description="share of the current tokens (geometric) or of the original ones (linear)"
    )
    query: Literal["last", "text"] = Field(
        default="last", description="whose attention counts: the last prompt token's, or the mean of all text tokens"
    )
    heredity: int = Field(default=1, ge=1, description="pruning boundaries that share one ranking: 1 = each ranks anew")


class Inheritance:
    """What one prompt remembers with ``heredity`` above 1: each row's last ranking.

    Attributes:
        n_visual: visual tokens of each row before any pruning.
        scores: float [B, N] by raster number; None before the first ranking.
        ranked: rows whose ranking stands in ``scores``.
    """

    def __init__(self, n_visual: tuple[int, ...]) -> None:
        self.n_visual = n_visual
        self.scores: Tensor | None = None
        self.ranked: set[int] = set()

    def store(self, scores: Tensor, ids: Tensor, rows: set[int]) -> None:
        """Remember new ``scores`` [B, N] of the tokens ``ids`` [B, N] (-1: padding), for ``rows`` alone."""
        import torch

        from tokentrim import written

        scattered = written(scores.new_zeros(len(self.n_visual), max(self.n_visual)), ids, scores)
        chosen = torch.tensor([[row in rows] for row in range(len(self.n_visual))], device=scores.device)
        # Boundaries may lie on several devices.
        before = None if self.scores is None else self.scores.to(scores.device)
        self.scores = scattered if before is None else torch.where(chosen, scattered, before)
        self.ranked |= rows

    def inherited(self, fresh: Callable[[], Tensor], ids: Tensor) -> Tensor:
        """float [B, N]: remembered scores of the tokens ``ids``; rows without a ranking get ``fresh`` ones."""
        import torch

        if self.scores is None:
            return fresh()
        found = self.scores.to(ids.device).gather(1, ids.clamp(min=0))
        if len(self.ranked) == len(self.n_visual):
            return found
        known = torch.tensor([[row in self.ranked] for row in range(len(self.n_visual))], device=found.device)
        return torch.where(known, found, fresh())


class PVTP(PVTPParameters, SpatialScorer):
    """Remove the least attended visual tokens step by step: at boundaries start, start + stride, ... below L.

    Score of visual token j at boundary b, with A the softmax over all keys in layer b-1, the previous layer:
    ``(1/H) sum_h A[h, last, j]``. Count, from n tokens at first and g before the boundary:

    - ``rule="geometric"``: ``floor((1 - prune_ratio) g)``;
    - ``rule="linear"``: ``max(0, floor(g - prune_ratio n))``.

    Both floors are exact. Known from the paper: pruning progresses with depth, the ranking comes from the previous
    layer's attention, the parameters are a stride and a ratio. Ours, as its full text and code were not available to
    us: the row of the last prompt token and the mean over heads (``query="text"`` is the option), the ratio of the
    current count (``linear`` is the switch), the start, the default values (calibrated by us), no sharing
    of queries or keys between layers, original position ids, one ranking over all images.

    ``heredity`` is an ablation (ours, off by default) of what the paper lists as QK heredity, as far as a ranking goes:
    of ``heredity`` pruning boundaries in a row, the first ranks, the others drop the least of what is left by that same
    ranking. ``stride=1, heredity=4`` prunes at every boundary and ranks at every fourth. A layer that inherits another
    layer's queries and keys in its own attention, as the authors' sequel has it, is not offered: a strategy decides
    what stays, and cannot change what attention computes. Nor would it save anything here: a model's own code projects
    queries and keys before it calls the attention function, where alone they could be exchanged.

    The defaults were chosen on calibration questions of models with 6, 12 and 14 layers: few cuts, two
    or three. One layer of ``start`` or ``stride`` moved single scores there by up to 88 points at 30 % of the tokens:
    calibrate both on your model (docs/results/st3.md).

    When it fails: as FastV does, since it trusts last-row attention of early layers at the first boundary; later
    boundaries correct nothing, because dropped tokens do not return. ``linear`` reaches zero in deep models.

    Cost: one attention row per head at each pruning boundary, O(g d), beside the fused kernel; it is
    computed at boundaries that inherit, too.

    Parameters: ``start`` and ``stride`` in layers, ``prune_ratio`` (share *dropped* per boundary), ``rule``, ``query``,
    ``heredity`` in pruning boundaries.

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
        for boundary in self.boundaries(shape):
            current = max(0, current - loss) if self.rule == "linear" else prune_count(self.prune_ratio, current)
            counts[boundary] = current
        return Schedule.of(counts)

    def begin(self, prompt: PromptInfo) -> Inheritance | None:
        """Room for a ranking, where rankings are shared."""
        return Inheritance(prompt.n_visual) if self.heredity > 1 else None

    def score(self, site: LayerSite) -> Tensor:
        """Attention in the previous layer, mean over heads (and over text tokens); or the ranking that is inherited."""
        if self.heredity == 1:
            return self._fresh(site)
        state: Inheritance = site.state
        if self.boundaries(site.shape).index(site.boundary) % self.heredity:
            return state.inherited(lambda: self._fresh(site), site.ids)
        scores = self._fresh(site)
        state.store(scores, site.ids, losing_rows(self, site, state.n_visual))
        return scores

    def _fresh(self, site: LayerSite) -> Tensor:
        return site.last_row.mean(dim=1) if self.query == "last" else text_row_mean(site)
