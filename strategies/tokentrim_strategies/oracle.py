"""``oracle``: the upper bound that a task with known evidence allows."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from tokentrim import LayerSite, Need, SpatialScorer, Stage
from tokentrim_strategies._keeping import KeepingAtBoundary

if TYPE_CHECKING:
    from torch import Tensor


class Oracle(KeepingAtBoundary, SpatialScorer):
    """Keep the visual tokens that the task says the answer needs.

    Score: the relevance that the task supplies for every token; ties go to the lower number. No deployable method:
    it works on testbed tasks alone, which know where their evidence lies, and shows how much accuracy a budget
    permits at best. On any other input the engine refuses it. Cost: none.

    Parameters: ``keep_ratio`` (share kept) or ``keep_count`` (tokens kept per prompt), ``boundary``.
    """

    name: ClassVar[str] = "oracle"
    stage: ClassVar[Stage] = "prefill"
    needs: ClassVar[frozenset[Need]] = frozenset({Need.EVIDENCE})

    def score(self, site: LayerSite) -> Tensor:
        """The task's relevance."""
        return site.evidence
