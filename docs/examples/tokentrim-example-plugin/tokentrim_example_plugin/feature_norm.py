"""``feature-norm``: one strategy, one file, one class."""

from typing import ClassVar

from pydantic import Field
from torch import Tensor

from tokentrim import LayerSite, ModelShape, Need, Schedule, SpatialScorer, keep_count
from tokentrim.strategy import Stage


class FeatureNorm(SpatialScorer):
    """Keep the visual tokens whose projected features have the largest Euclidean norm.

    Score of token j: ``|f_j|``, with f_j its features as they enter the language model. The question plays no part, so
    the same picture always keeps the same tokens.

    When it fails: a large norm often marks a token in which the vision tower stored something global, not the object
    that the question is about.

    Cost: O(N d), no attention row.

    Parameters: ``keep_ratio``, the share kept, rounded down exactly; ``boundary``, the decoder layer before which the
    others leave.
    """

    name: ClassVar[str] = "feature-norm"
    stage: ClassVar[Stage] = "prefill"
    needs: ClassVar[frozenset[Need]] = frozenset({Need.FEATURES})
    budget_knob: ClassVar[str | None] = "keep_ratio"

    keep_ratio: float = Field(default=0.5, ge=0, le=1, description="share of the visual tokens that is kept")
    boundary: int = Field(default=0, ge=0, description="decoder layer (0-based) before which it acts; 0 = the input")

    def schedule(self, shape: ModelShape, n_visual: int) -> Schedule:
        """One cut."""
        return Schedule.of({self.boundary: keep_count(self.keep_ratio, n_visual)})

    def score(self, site: LayerSite) -> Tensor:
        """float [B, N]: the norms, in float32 so that a half-precision model ranks the same."""
        return site.features.float().norm(dim=-1)
