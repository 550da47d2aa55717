"""Parameters that strategies with several published cuts share: where they lie in a model of any depth."""

from __future__ import annotations

from abc import ABC
from collections.abc import Mapping, Sequence
from fractions import Fraction
from itertools import pairwise
from typing import ClassVar, Final

from pydantic import Field, field_validator

from tokentrim import ModelShape, Spatial, complaint
from tokentrim_strategies._keeping import check_boundary

_DEPTH: Final = 32  # decoder layers of the models for which boundaries are published


def between(tables: Mapping[int, Sequence[int]], at: Fraction) -> list[Fraction]:
    """The table for the number ``at``: linear between those of the numbers beside it, entry by entry."""
    low, high = max(number for number in tables if number <= at), min(number for number in tables if number >= at)
    part = (at - low) / (high - low) if high > low else Fraction(0)
    return [below + part * (above - below) for below, above in zip(tables[low], tables[high], strict=True)]


class Staged(Spatial, ABC):
    """A spatial strategy with cuts at boundaries that are published for 32 layers."""

    published: ClassVar[tuple[int, ...]] = ()

    boundaries: tuple[int, ...] | None = Field(
        default=None, min_length=1, description="decoder layers before which it cuts; None: at the published depth"
    )

    @field_validator("boundaries")
    @classmethod
    def _ascending(cls, value: tuple[int, ...] | None) -> tuple[int, ...] | None:
        if value is not None and (value[0] < 1 or any(later <= earlier for earlier, later in pairwise(value))):
            raise ValueError(complaint(f"boundaries of strategy {cls.name!r}", "ascend, from 1 on", value))
        return value

    def cuts(self, shape: ModelShape) -> tuple[int, ...]:
        """The boundaries in a model: as given, or ``floor(b L / 32)`` of the published ones, 1 at least.

        In models of a few layers two may be one; the later cut then counts.
        """
        if self.boundaries is not None:
            check_boundary(self, "boundaries", max(self.boundaries), shape)
            return self.boundaries
        return tuple(max(1, boundary * shape.n_layers // _DEPTH) for boundary in self.published)

    def one_share_each(self, whom: str, shares: Sequence[float]) -> None:
        """Raise ValueError unless there is a share for every cut."""
        wanted = len(self.published if self.boundaries is None else self.boundaries)
        if len(shares) != wanted:
            raise ValueError(complaint(f"{whom} of strategy {self.name!r}", f"be {wanted}, one for each cut", shares))
