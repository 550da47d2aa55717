"""What strategies share that keep a part of every layer's cached visual entries, decided once."""

from __future__ import annotations

from abc import ABC
from typing import ClassVar

from pydantic import Field

from tokentrim import ModelShape, TemporalScorer, resolve_count
from tokentrim_strategies._keeping import RatioOrNone


class KeepingEntries(TemporalScorer, ABC):
    """A temporal strategy that keeps a share, or a number, of each layer's visual entries, decided once.

    ``keep_count`` takes the place of the default ``keep_ratio``; writing both is an error.
    """

    budget_knob: ClassVar[str | None] = "keep_ratio"

    keep_ratio: RatioOrNone = Field(default=0.25, description="share of a layer's visual entries that is kept")
    keep_count: int | None = Field(
        default=None, ge=0, description="visual entries kept per prompt and layer, instead of keep_ratio"
    )

    def count(self, step: int, layer: int, n_prefill: int, shape: ModelShape) -> int:
        """The same at every step, in every layer."""
        return resolve_count(n_prefill, self.keep_ratio, self.keep_count)

    def ranks_once(self) -> bool:
        """What the prompt attended to does not change."""
        return True
