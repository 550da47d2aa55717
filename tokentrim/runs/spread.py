"""A spread: the median of repeated measurements and their quartiles."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median, quantiles


@dataclass(frozen=True)
class Spread:
    """Median of repeated measurements and their quartiles."""

    median: float
    low: float
    high: float
    n: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Summary of at least one value."""
        if len(values) == 1:
            return cls(values[0], values[0], values[0], 1)
        low, _, high = quantiles(values, n=4, method="inclusive")
        return cls(median(values), low, high, len(values))

    def text(self, scale: float = 1.0, digits: int = 2) -> str:
        """``median ±half the distance of the quartiles``; the median alone where there is one value."""
        middle = f"{self.median * scale:.{digits}f}"
        return middle if self.n == 1 else f"{middle} ±{(self.high - self.low) / 2 * scale:.{digits}f}"
