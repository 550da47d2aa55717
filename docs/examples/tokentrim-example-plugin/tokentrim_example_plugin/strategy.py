"""``feature-norm``: one strategy, one file, one class."""

from pydantic import Field
from torch import Tensor

from tokentrim import LayerSite, ModelShape, Need, Schedule, SpatialScorer, keep_count


class FeatureNorm(SpatialScorer):
    """Keep the visual tokens whose features have the largest norm."""

    name = "feature-norm"
    needs = frozenset({Need.FEATURES})
    budget_knob = "keep_ratio"
    keep_ratio: float = Field(default=0.5, ge=0, le=1, description="share of the visual tokens that is kept")

    def schedule(self, shape: ModelShape, n_visual: int) -> Schedule:
        """One cut, at the language model's input (boundary 0)."""
        return Schedule.of({0: keep_count(self.keep_ratio, n_visual)})

    def score(self, site: LayerSite) -> Tensor:
        """float [batch, tokens], higher = kept; in float32, so that a half-precision model ranks the same."""
        return site.features.float().norm(dim=-1)
