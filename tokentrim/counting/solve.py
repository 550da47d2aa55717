"""Budget matching: turn a strategy's one budget knob until its plan meets a target."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from decimal import ROUND_CEILING, Decimal
from typing import Any, Final, Generic, Protocol, TypeVar

from tokentrim.counting.counted import Counted
from tokentrim.counting.forecast import NEW_TOKENS, TEXT_TOKENS, plan
from tokentrim.counting.shape import ModelShape
from tokentrim.errors import StrategyError, complaint

DECIMALS: Final = 6
"""Of a ratio that is searched: a step of 1e-6 tells counts apart up to a million visual tokens."""

Whole = TypeVar("Whole", bound=Counted)
Whole_co = TypeVar("Whole_co", covariant=True)


@dataclass(frozen=True)
class Knob(Generic[Whole_co]):
    """One monotone parameter and the grid of values on which it is searched.

    Attributes:
        whom: label of the strategy that it belongs to, for messages.
        name: the parameter.
        low: smallest value on the grid.
        steps: number of grid steps; the largest value is ``low + steps * step``.
        step: distance between neighbouring values, an exact decimal.
        integer: whether values are counts.
        whole: the whole strategy, as it is.
        turn: the whole strategy with the parameter set.
    """

    whom: str
    name: str
    low: Decimal
    steps: int
    step: Decimal
    integer: bool
    whole: Whole_co
    turn: Callable[[Any], Whole_co]

    def value(self, index: int) -> float | int:
        """The grid value of an index in 0..steps."""
        exact = self.low + index * self.step
        return int(exact) if self.integer else float(exact)

    def at(self, index: int) -> Whole_co:
        """The strategy at a grid index."""
        return self.turn(self.value(index))


class Tunable(Counted, Protocol[Whole_co]):
    """What a budget can be solved for."""

    def knob(self, largest_count: int) -> Knob[Whole_co]:
        """Its one budget knob; ``largest_count`` ends the search where an integer parameter declares no end.

        Raises:
            StrategyError: when there is none, or more than one.
        """
        ...


def solve(
    strategy: Tunable[Whole],
    shape: ModelShape,
    n_visual: int,
    *,
    layer_mean_ratio: float | None = None,
    kv_ratio: float | None = None,
    kv_read_ratio: float | None = None,
    flops_ratio: float | None = None,
    n_text: int = TEXT_TOKENS,
    new_tokens: int = NEW_TOKENS,
) -> tuple[Whole, float]:
    """The strategy whose planned cost is the highest achievable one not above the target, and that cost.

    Exactly one target is given, each a share of the unpruned run:

    * ``layer_mean_ratio``: mean over layers of the visual tokens processed in prefill;
    * ``kv_ratio``: visual cache entries, mean over decode forwards;
    * ``kv_read_ratio``: visual cache entries that attention sees, likewise;
    * ``flops_ratio``: prefill FLOPs of the language model, physical convention.

    Several values of the knob may give the same counts; the one with the fewest decimals is returned. Where
    counts depend on the data, the plan's upper bounds are matched, and the realised value is an upper bound too.

    Args:
        strategy: has one budget knob, itself or in one of its parts.
        shape: the model's numbers.
        n_visual: visual tokens of the prompt.
        layer_mean_ratio: target, or None.
        kv_ratio: target, or None.
        kv_read_ratio: target, or None.
        flops_ratio: target, or None.
        n_text: all other tokens of the prompt (matters to ``flops_ratio`` alone).
        new_tokens: tokens to generate (matters to the two shares of the cache).

    Raises:
        StrategyError: when not exactly one target is given, there is no knob or more than one, the knob does not
            act on the target, or the target lies below the least reachable value (which is named).
    """
    said, target = _target(
        {
            "layer_mean_ratio": layer_mean_ratio,
            "kv_ratio": kv_ratio,
            "kv_read_ratio": kv_read_ratio,
            "flops_ratio": flops_ratio,
        }
    )
    measure = "kv_mean_ratio" if said == "kv_ratio" else said  # as the plan's usage calls it
    # Decode forwards are planned only where the target looks at them: they are most of a plan's work.
    new_tokens = new_tokens if measure.startswith("kv") else 1

    def realised(candidate: Counted) -> float:
        return getattr(plan(candidate, shape, n_visual, n_text, new_tokens).usage, measure)

    knob = strategy.knob(max(n_visual, shape.n_layers))
    ends = realised(knob.at(0)), realised(knob.at(knob.steps))
    if ends[0] == ends[1]:
        if ends[0] == target or n_visual == 0:
            return knob.whole, realised(strategy)
        raise StrategyError(
            complaint(
                f"{said} of strategy {knob.whom!r}",
                f"depend on its budget knob {knob.name!r}",
                f"{ends[0]:.4f} at both ends of it",
                "match another ratio (kv_read_ratio, where nothing leaves the cache), or set its parameters by hand",
            )
        )
    if target < min(ends):
        raise StrategyError(
            complaint(
                f"{said} of strategy {strategy.label()!r}",
                f"be at least {min(ends):.4f}, the least that {knob.name!r} can reach here",
                target,
                "raise the budget, or change what else limits it: where pruning starts, a floor, a fixed count",
            )
        )
    return _search(knob, realised, target, rising=ends[1] > ends[0])


def _target(named: dict[str, float | None]) -> tuple[str, float]:
    """The one target that was given: its name and its value."""
    given = [(name, target) for name, target in named.items() if target is not None]
    if len(given) != 1:
        raise StrategyError(
            complaint(
                "a budget",
                "give exactly one of layer_mean_ratio, kv_ratio, kv_read_ratio and flops_ratio",
                [name for name, _ in given],
                "match one figure; the plan reports the others",
            )
        )
    name, target = given[0]
    if not 0 <= target <= 1:
        raise StrategyError(
            complaint(f"the budget's {name}", "lie in [0, 1]", target, "give a share of the unpruned run")
        )
    return name, target


def _search(
    knob: Knob[Whole], realised: Callable[[Counted], float], target: float, *, rising: bool
) -> tuple[Whole, float]:
    """Bisect for the highest realised value <= target, then take the roundest knob value that gives it."""

    def cost(index: int) -> float:
        return realised(knob.at(index if rising else knob.steps - index))

    # From here on cost never falls with the index, and cost(0) <= target.
    last = _last_index(knob.steps, lambda index: cost(index) <= target)
    best = cost(last)
    first = knob.steps - _last_index(knob.steps, lambda index: cost(knob.steps - index) >= best)
    indices = (first, last) if rising else (knob.steps - last, knob.steps - first)
    chosen = knob.at(roundest(knob, *indices))
    return chosen, realised(chosen)


def _last_index(steps: int, holds: Callable[[int], bool]) -> int:
    """The largest index in 0..steps for which ``holds``, given that it holds at 0 and changes once at most."""
    low, high = 0, steps + 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if holds(middle) else (low, middle)
    return low


def roundest(knob: Knob[Any], first: int, last: int) -> int:
    """The index in first..last whose value has the fewest decimals: 0.2 rather than 0.200781."""
    for decimals in range(DECIMALS):
        unit = Decimal(1).scaleb(-decimals)
        if unit <= knob.step:
            break
        lowest = knob.low + first * knob.step
        multiple = lowest.quantize(unit, rounding=ROUND_CEILING)
        index = int((multiple - knob.low) / knob.step)
        if first <= index <= last:
            return index
    return last
