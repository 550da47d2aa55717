"""``v2drop``: the tokens that a layer changes most stay; no attention is read."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field, model_validator

from tokentrim import LayerSite, ModelShape, Need, Schedule, SpatialScorer, Stage, keep_count
from tokentrim_strategies._keeping import Share
from tokentrim_strategies._stages import Staged

if TYPE_CHECKING:
    from torch import Tensor


class V2Drop(Staged, SpatialScorer):
    """Drop the visual tokens that the layer before a cut has changed least, at three depths.

    Score of visual token j at a cut before layer b: ``|x_b[j] - x_{b-1}[j]|``, the Euclidean norm of what layer b-1
    added to its state. At the first cut ``floor(first n)`` stay, at each later one ``floor(later g)`` of the g that are
    left, and ``least`` at any.

    Follows the released code: cuts before layers 3, 16 and 22 of 32, shares of .25, .05 and 0, one token at least. A
    model of L layers is cut before layers ``floor(b L / 32)`` (ours). Other versions of the code, and papers, cut
    before layer 17 instead of 16, and have other shares: kept are .5, .3 and 0 of what there is for a mean of 192 of
    576 tokens, .28, .25 and 0 for 128, .05, .05 and 0 for 64. Original positions stay, as in the code. Several images
    share one ranking (ours).

    When it fails: it asks how much a token moves, not whether the question needs it; tokens with large norms move far,
    and in shallow layers these collect attention without meaning. Nearly all tokens are gone behind the second cut,
    which tasks that look at the image late do not forgive.

    Cost: one difference and one norm per token, O(N D), and a copy of the visual states one layer earlier. Attention
    runs as it is, so any kernel will do.

    Parameters: ``first`` (share that the first cut keeps), ``later`` (shares of what is left, one for each later
    cut), ``least`` (tokens that stay at any cut), ``boundaries`` (decoder layers, counted from 0).

    ```bibtex
    @article{chen2025v2drop,
      title={Variation-aware Vision Token Dropping for Faster Large Vision-Language Models},
      author={Chen, Junjie and Liu, Xuyang and Wen, Zichen and Wang, Yiyu and Huang, Siteng and Chen, Honggang},
      journal={arXiv preprint arXiv:2509.01552},
      year={2025},
      note={arXiv:2509.01552}
    }
    ```
    """

    name: ClassVar[str] = "v2drop"
    stage: ClassVar[Stage] = "prefill"
    needs: ClassVar[frozenset[Need]] = frozenset({Need.HIDDEN, Need.HIDDEN_BEFORE})
    budget_knob: ClassVar[str | None] = "first"
    published: ClassVar[tuple[int, ...]] = (3, 16, 22)

    first: Share = Field(default=0.25, description="share of the visual tokens that the first cut keeps")
    later: tuple[Share, ...] = Field(
        default=(0.05, 0.0), description="shares of what is left that the later cuts keep, one for each"
    )
    least: int = Field(default=1, ge=0, description="visual tokens that stay at any cut, where there are as many")

    @model_validator(mode="after")
    def _one_share_each(self) -> V2Drop:
        self.one_share_each("first and later", (self.first, *self.later))
        return self

    def schedule(self, shape: ModelShape, n_visual: int) -> Schedule:
        """A share of what is left, cut after cut."""
        counts, left = dict[int, int](), n_visual
        for cut, share in zip(self.cuts(shape), (self.first, *self.later), strict=True):
            left = min(left, max(keep_count(share, left), self.least))
            counts[cut] = left
        return Schedule.of(counts)

    def score(self, site: LayerSite) -> Tensor:
        """How far the layer before moved every token."""
        return (site.hidden.float() - site.hidden_before.float()).norm(dim=-1)
