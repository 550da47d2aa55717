"""G-Search: from shallow to deep, the least keep rate of each layer with which the quality still holds.

The greedy order and the aim are the paper's (arXiv 2412.00556). No code came with it, so the step is our
**reconstruction**: at boundary b every layer from b on gets the rate that is tried, the layers before b keep theirs,
and a bisection finds the least rate of a grid, at most the rate before, whose quality reaches a limit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

from tokentrim.counting.rounding import exact

Rates = Mapping[int, float]
"""boundary -> share of all visual tokens that is kept from there on; never rising."""


@dataclass
class Found:
    """What a search found, and every step of the way.

    Attributes:
        rates: boundary -> keep rate, at those boundaries alone where it falls.
        trace: one entry per trial, in order.
    """

    rates: dict[int, float] = field(default_factory=dict[int, float])
    trace: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])


def grid_of(resolution: float) -> tuple[float, ...]:
    """0, resolution, 2 resolution, ..., 1, in exact decimals.

    Args:
        resolution: distance of neighbouring rates, in (0, 1].
    """
    step = exact(resolution)
    return (*(float(step * index) for index in range(math.ceil(Fraction(1) / step))), 1.0)


def most_trials(boundaries: Sequence[int], grid: Sequence[float]) -> int:
    """Most evaluations that :func:`gsearch` can need."""
    return len(boundaries) * math.ceil(math.log2(len(grid)))


def gsearch(
    evaluate: Callable[[Rates], float], *, boundaries: Sequence[int], grid: Sequence[float], least_quality: float
) -> Found:
    """Search every boundary's keep rate.

    The result is the least one if the quality never falls when a rate rises. Where it does, as it may on few
    questions, each rate found still reaches the limit, but a lower one may exist.

    Args:
        evaluate: quality of a model pruned by these rates; higher is better.
        boundaries: boundaries at which tokens may go, ascending.
        grid: rates to choose from, ascending, the last one 1 (which is taken to reach the limit).
        least_quality: what a rate must reach to be taken.
    """
    found = Found()
    ceiling = len(grid) - 1  # index of the rate before, which is known to reach the limit
    for boundary in boundaries:
        low, high = 0, ceiling
        while low < high:
            middle = (low + high) // 2
            quality = evaluate({**found.rates, boundary: grid[middle]})
            holds = quality >= least_quality
            found.trace.append({"boundary": boundary, "rate": grid[middle], "quality": quality, "holds": holds})
            if holds:
                high = middle
            else:
                low = middle + 1
        if high < ceiling:
            found.rates[boundary] = grid[high]
            ceiling = high
    return found
