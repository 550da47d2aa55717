"""The strategies of the self-test: their decisions depend on nothing but numbers, so only the engine is on trial."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

from torch import Tensor

from tokentrim.contracts.sites import LayerSite, Need, StepSite
from tokentrim.contracts.strategy import SpatialScorer, Stage, TemporalScorer
from tokentrim.counting.schedule import Schedule
from tokentrim.counting.shape import ModelShape

_PRIME = 7919


class Scatter(SpatialScorer):
    """At every boundary ``b`` of ``shares``, keep that share of the tokens, picked all over the picture."""

    name: ClassVar[str] = "selftest-scatter"
    stage: ClassVar[Stage] = "prefill"
    shares: dict[int, float]

    def schedule(self, shape: ModelShape, n_visual: int) -> Schedule:
        """Counts by boundary."""
        return Schedule.of({boundary: max(1, int(n_visual * share)) for boundary, share in self.shares.items()})

    def score(self, site: LayerSite) -> Tensor:
        """A number that jumps from token to token."""
        return (site.ids * _PRIME % 1009).float()


class Noisy(Scatter):
    """The same, picked by the engine's noise."""

    name: ClassVar[str] = "selftest-noisy"
    needs: ClassVar[frozenset[Need]] = frozenset({Need.RANDOM})

    def score(self, site: LayerSite) -> Tensor:
        """Noise."""
        return site.random(0, salt=site.boundary)


class Fade(TemporalScorer):
    """Let every layer forget ``rate`` of its visual entries per step."""

    name: ClassVar[str] = "selftest-fade"
    rate: float

    def count(self, step: int, layer: int, n_prefill: int, shape: ModelShape) -> int:
        """What may stay."""
        return max(1, int(n_prefill * (1 - self.rate * step))) if n_prefill else 0

    def score(self, site: StepSite) -> Tensor:
        """A number that jumps from token to token."""
        return (site.ids * _PRIME % 997).float()


def reader(needs: frozenset[Need], look: Callable[[LayerSite], None]) -> type[Scatter]:
    """A strategy that hands every site to ``look``."""

    class Reader(Scatter):
        def needed(self) -> frozenset[Need]:
            return needs

        def score(self, site: LayerSite) -> Tensor:
            look(site)
            return super().score(site)

    Reader.needs = needs
    return Reader
