"""``random``: the control that a method has to beat."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from tokentrim import LayerSite, Need, SpatialScorer, Stage
from tokentrim_strategies._keeping import KeepingAtBoundary

if TYPE_CHECKING:
    from torch import Tensor


class Random(KeepingAtBoundary, SpatialScorer):
    """Keep visual tokens drawn at random, without replacement.

    Score: uniform noise in [0, 1) that depends on (seed, boundary, the sample's content, the token's number) and on
    nothing else, so a sample draws the same tokens alone, in any batch and on any device.

    It is a strong control: published audits find it ahead of several attention methods at small budgets. It fails
    where the answer lies in few tokens (small text, small objects). Cost: one hash per token.

    Parameters: ``keep_ratio`` (share kept) or ``keep_count`` (tokens kept per prompt), ``boundary``, ``seed``.
    Set ``boundary`` to a method's own to compare at an equal place inside the language model.
    """

    name: ClassVar[str] = "random"
    stage: ClassVar[Stage] = "prefill"
    needs: ClassVar[frozenset[Need]] = frozenset({Need.RANDOM})

    seed: int = Field(default=0, ge=0, lt=2**31, description="seed of the noise")

    def score(self, site: LayerSite) -> Tensor:
        """Noise of this seed and boundary."""
        return site.random(self.seed, salt=site.boundary)
