"""``tally``: cuts in the first layers, by what the question's words have looked at in all layers so far."""

from __future__ import annotations

from fractions import Fraction
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from tokentrim import LayerSite, ModelShape, Need, PromptInfo, Schedule, SpatialScorer, Stage, keep_count
from tokentrim_strategies._keeping import Share
from tokentrim_strategies._scores import losing_rows, text_row_mean
from tokentrim_strategies._stages import Staged
from tokentrim_strategies.pvtp import Inheritance

if TYPE_CHECKING:
    from torch import Tensor


class RunningTally(Staged, SpatialScorer):
    """Cut twice in the first layers; what any word of the prompt looked at, in any layer read so far, counts on.

    At cut s = 1, 2, ..., before layer b, ``floor(n f keep_ratio^(s-1))`` of the n original tokens stay, with f the
    larger of ``first`` and ``keep_ratio``. With A the softmax over all keys, H heads, T text tokens, layer b-1 gives j
    ``a_j = (1/(H T)) sum_h sum_i A[h, i, j]``, and the cut ranks by ``t_j = a_j / sum a + t'_j / sum t'``, both sums
    over the tokens that are left: one vote for what the words look at now, one for the tally t' of the cut before.

    Ours, composed of what others have shown: cuts step by step (``pvtp``, ``pyramiddrop``), rows of all words
    (``sparsevlm``, ``layer-counts``). New is the sum. A word looks up what it names in one layer; a cut that ranks
    by a later layer alone drops what was found and not yet used, such as what a list names
    later. docs/results/tally.md says what each part is worth.

    When it fails: the prompt does not name what will be asked for (descriptions, second questions about the picture);
    the first layers of a model do not look words up, and the ranking is noise: give later ``boundaries``. Layers before
    the first cut see every token, and that cut leaves many, which sets a least budget: 15 % of twelve layers.

    Cost: attention rows of all text tokens of one layer at each cut, O(T g d), beside the fused kernel.

    Parameters: ``first`` (share that the first cut keeps: little was read before it), ``keep_ratio`` (share that each
    later cut keeps of what the one before kept), ``boundaries`` (decoder layers, counted from 0; None: 3 and 6 of 32,
    as deep in other models), ``votes`` and ``words``, whose other values are ablations.
    """

    name: ClassVar[str] = "tally"
    stage: ClassVar[Stage] = "prefill"
    needs: ClassVar[frozenset[Need]] = frozenset({Need.TEXT_ROWS, Need.LAST_ROW})
    budget_knob: ClassVar[str | None] = "keep_ratio"
    published: ClassVar[tuple[int, ...]] = (3, 6)  # ours

    keep_ratio: Share = Field(default=0.15, description="share that each later cut keeps of the cut before")
    first: Share = Field(default=0.8, description="share that the first cut keeps, or keep_ratio where that is more")
    votes: Literal["sum", "latest"] = Field(
        default="sum", description="whether a cut also counts what earlier cuts' words looked at"
    )
    words: Literal["all", "last"] = Field(
        default="all", description="whose attention counts: all text tokens', or the last prompt token's"
    )

    def needed(self) -> frozenset[Need]:
        """The one kind of row that ``words`` reads."""
        return frozenset({Need.TEXT_ROWS if self.words == "all" else Need.LAST_ROW})

    def schedule(self, shape: ModelShape, n_visual: int) -> Schedule:
        """What the first cut keeps, then a share of that at each later one."""
        ratio = Fraction(str(self.keep_ratio))
        first = max(ratio, Fraction(str(self.first)))
        return Schedule.of({b: keep_count(first * ratio**s, n_visual) for s, b in enumerate(self.cuts(shape))})

    def begin(self, prompt: PromptInfo) -> Inheritance:
        """An empty tally."""
        return Inheritance(prompt.n_visual)

    def score(self, site: LayerSite) -> Tensor:
        """The tally with this layer's votes."""
        votes = scaled(text_row_mean(site) if self.words == "all" else site.last_row.mean(dim=1), site)
        state: Inheritance = site.state
        if self.votes == "latest":
            return votes
        if state.scores is not None:  # boundaries may lie on several devices
            votes = votes + scaled(state.scores.to(site.device).gather(1, site.ids.clamp(min=0)), site)
        state.store(votes, site.ids, losing_rows(self, site, state.n_visual))
        return votes


def scaled(scores: Tensor, site: LayerSite) -> Tensor:
    """float [B, N]: scores of at least 0 as shares of their row's sum; 0 in padding."""
    real = scores.float().masked_fill(~site.valid, 0.0)
    return real / real.sum(dim=1, keepdim=True).clamp(min=1e-30)
