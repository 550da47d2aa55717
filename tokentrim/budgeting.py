"""Budget matching: turn a strategy's one budget knob until its plan meets a target."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from decimal import ROUND_CEILING, Decimal
from typing import Any, Final

from pydantic import ValidationError

from tokentrim.errors import StrategyError, complaint
from tokentrim.plan import NEW_TOKENS, TEXT_TOKENS, plan
from tokentrim.shape import ModelShape
from tokentrim.strategy import Composition, Spatial, Strategy

_DECIMALS: Final = 6  # a step of 1e-6 tells counts apart up to a million visual tokens
_COUNT_OF_RATIO: Final = {"keep_ratio": "keep_count"}  # the pair that tokentrim.budget.resolve_count reads

Turn = Callable[[Any], Strategy]


@dataclass(frozen=True)
class Knob:
    """One monotone parameter and the grid of values on which it is searched.

    Attributes:
        whom: label of the strategy that it belongs to, for messages.
        name: the parameter.
        low: smallest value on the grid.
        steps: number of grid steps; the largest value is ``low + steps * step``.
        step: distance between neighbouring values, an exact decimal.
        integer: whether values are counts.
        turn: the whole strategy with the parameter set.
    """

    whom: str
    name: str
    low: Decimal
    steps: int
    step: Decimal
    integer: bool
    turn: Turn

    def value(self, index: int) -> float | int:
        """The grid value of an index in 0..steps."""
        exact = self.low + index * self.step
        return int(exact) if self.integer else float(exact)

    def at(self, index: int) -> Strategy:
        """The strategy at a grid index."""
        return self.turn(self.value(index))


def solve(
    strategy: Strategy,
    shape: ModelShape,
    n_visual: int,
    *,
    layer_mean_ratio: float | None = None,
    kv_ratio: float | None = None,
    flops_ratio: float | None = None,
    n_text: int = TEXT_TOKENS,
    new_tokens: int = NEW_TOKENS,
) -> tuple[Strategy, float]:
    """The strategy whose planned cost is the highest achievable one not above the target, and that cost.

    Exactly one target is given, each a share of the unpruned run:

    * ``layer_mean_ratio``: mean over layers of the visual tokens processed in prefill;
    * ``kv_ratio``: visual cache entries, mean over decode forwards;
    * ``flops_ratio``: prefill FLOPs of the language model, physical convention.

    Several values of the knob may give the same counts; the one with the fewest decimals is returned. Where
    counts depend on the data, the plan's upper bounds are matched, and the realised value is an upper bound too.

    Args:
        strategy: has one ``budget_knob``, itself or in one of its parts.
        shape: the model's numbers.
        n_visual: visual tokens of the prompt.
        layer_mean_ratio: target, or None.
        kv_ratio: target, or None.
        flops_ratio: target, or None.
        n_text: all other tokens of the prompt (matters to ``flops_ratio`` alone).
        new_tokens: tokens to generate (matters to ``kv_ratio`` alone).

    Raises:
        StrategyError: when not exactly one target is given, there is no knob or more than one, the knob does not
            act on the target, or the target lies below the least reachable value (which is named).
    """
    measure, target = _measure(layer_mean_ratio, kv_ratio, flops_ratio)
    # Decode forwards are planned only where the target looks at them: they are most of a plan's work.
    new_tokens = new_tokens if measure == "kv_mean_ratio" else 1

    def realised(candidate: Strategy) -> float:
        return getattr(plan(candidate, shape, n_visual, n_text, new_tokens).usage, measure)

    knob = find_knob(strategy, max(n_visual, shape.n_layers))
    ends = realised(knob.at(0)), realised(knob.at(knob.steps))
    if ends[0] == ends[1]:
        if ends[0] == target or n_visual == 0:
            return strategy, realised(strategy)
        raise StrategyError(
            complaint(
                f"{measure} of strategy {knob.whom!r}",
                f"depend on its budget knob {knob.name!r}",
                f"{ends[0]:.4f} at both ends of it",
                "match another ratio, or set its parameters by hand",
            )
        )
    if target < min(ends):
        raise StrategyError(
            complaint(
                f"{measure} of strategy {strategy.label()!r}",
                f"be at least {min(ends):.4f}, the least that {knob.name!r} can reach here",
                target,
                "raise the budget, or let pruning start at an earlier boundary",
            )
        )
    return _search(knob, realised, target, rising=ends[1] > ends[0])


def _measure(layer_mean_ratio: float | None, kv_ratio: float | None, flops_ratio: float | None) -> tuple[str, float]:
    """The one target that was given: the name of its figure in ``Usage``, and its value."""
    named = {"layer_mean_ratio": layer_mean_ratio, "kv_mean_ratio": kv_ratio, "flops_ratio": flops_ratio}
    given = [(measure, target) for measure, target in named.items() if target is not None]
    if len(given) != 1:
        raise StrategyError(
            complaint(
                "a budget",
                "give exactly one of layer_mean_ratio, kv_ratio and flops_ratio",
                [measure for measure, _ in given],
                "match one figure; the plan reports the others",
            )
        )
    measure, target = given[0]
    if not 0 <= target <= 1:
        raise StrategyError(
            complaint(f"the budget's {measure}", "lie in [0, 1]", target, "give a share of the unpruned run")
        )
    return measure, target


def _search(
    knob: Knob, realised: Callable[[Strategy], float], target: float, *, rising: bool
) -> tuple[Strategy, float]:
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


def roundest(knob: Knob, first: int, last: int) -> int:
    """The index in first..last whose value has the fewest decimals: 0.2 rather than 0.200781."""
    for decimals in range(_DECIMALS):
        unit = Decimal(1).scaleb(-decimals)
        if unit <= knob.step:
            break
        lowest = knob.low + first * knob.step
        multiple = lowest.quantize(unit, rounding=ROUND_CEILING)
        index = int((multiple - knob.low) / knob.step)
        if first <= index <= last:
            return index
    return last


def find_knob(strategy: Strategy, largest_count: int) -> Knob:
    """The one budget knob of a strategy or, in a composition, of its parts.

    A composition's spatial parts come first: its temporal part is turned when no spatial part has a knob.

    Args:
        strategy: what to search.
        largest_count: upper end of the search where an integer parameter declares none.

    Raises:
        StrategyError: when there is no knob, or several spatial parts have one.
    """
    if not isinstance(strategy, Composition):
        return _own_knob(strategy, largest_count, lambda changed: changed)
    tunable = [index for index, part in enumerate(strategy.spatial) if part.budget_knob is not None]
    if len(tunable) > 1:
        names = [f"{strategy.spatial[index].name}.{strategy.spatial[index].budget_knob}" for index in tunable]
        raise StrategyError(
            complaint(
                f"strategy {strategy.label()!r}",
                "have one budget knob",
                names,
                f"leave the budget out, and set {' and '.join(names)} by hand",
            )
        )
    if tunable:
        place = tunable[0]

        def put(part: Strategy) -> Strategy:
            if not isinstance(part, Spatial):  # turning a knob never changes a strategy's class
                raise StrategyError(complaint(f"part {part.label()!r}", "stay a spatial strategy", type(part)))
            parts = (*strategy.spatial[:place], part, *strategy.spatial[place + 1 :])
            return Composition(spatial=parts, temporal=strategy.temporal)

        return _own_knob(strategy.spatial[place], largest_count, put)
    if strategy.temporal is not None:
        return _own_knob(
            strategy.temporal,
            largest_count,
            lambda part: Composition(spatial=strategy.spatial, temporal=part.temporal_part),
        )
    return _own_knob(strategy, largest_count, lambda changed: changed)


def _own_knob(strategy: Strategy, largest_count: int, put: Callable[[Strategy], Strategy]) -> Knob:
    """The knob that a single strategy declares; ``put`` sets the changed strategy in its place."""
    name = strategy.budget_knob
    if name is None:
        raise StrategyError(
            complaint(
                f"strategy {strategy.label()!r}",
                "declare a budget_knob to be matched to a budget",
                None,
                "leave the budget out, or choose a strategy with a keep_ratio",
            )
        )
    fields = type(strategy).model_fields
    if name not in fields:
        raise StrategyError(
            complaint(
                f"budget_knob of strategy {strategy.name!r}",
                "name one of its parameters",
                name,
                f"its parameters are {', '.join(sorted(fields))}",
            )
        )
    integer = int in _members(fields[name].annotation) and float not in _members(fields[name].annotation)
    low, high = _bounds(fields[name].metadata, integer, largest_count)
    step = Decimal(1) if integer else Decimal(1).scaleb(-_DECIMALS)
    low = low if _inclusive(fields[name].metadata, "gt", low) else low + step
    high = high if _inclusive(fields[name].metadata, "lt", high) else high - step
    return Knob(
        whom=strategy.label(),
        name=name,
        low=low,
        steps=int((high - low) / step),
        step=step,
        integer=integer,
        turn=lambda value: put(turned(strategy, name, value)),
    )


def turned(strategy: Strategy, name: str, value: float) -> Strategy:
    """``strategy`` with one parameter set, validated anew; a ratio takes the place of its fixed count.

    Raises:
        StrategyError: when the strategy's own validation refuses the value.
    """
    given = {field: getattr(strategy, field) for field in strategy.model_fields_set}
    rival = _COUNT_OF_RATIO.get(name)
    if rival in type(strategy).model_fields:
        given[rival] = None
    try:
        return type(strategy)(**{**given, name: value})
    except ValidationError as cause:
        raise StrategyError(
            complaint(
                f"{name} of strategy {strategy.label()!r}",
                "be valid over its declared range",
                value,
                str(cause.errors()[0]["msg"]),
            )
        ) from cause


def _members(annotation: Any) -> set[Any]:
    """The types that an annotation admits: itself, or the members of a union."""
    arguments: tuple[Any, ...] = getattr(annotation, "__args__", ())
    return {annotation, *arguments}


def _bounds(metadata: list[Any], integer: bool, largest_count: int) -> tuple[Decimal, Decimal]:
    """The declared range of a parameter; [0, 1] for a ratio and [0, largest_count] for a count by default."""
    low, high = Decimal(0), Decimal(largest_count if integer else 1)
    for constraint in metadata:
        for name in ("ge", "gt"):
            low = _decimal(getattr(constraint, name, None), low)
        for name in ("le", "lt"):
            high = _decimal(getattr(constraint, name, None), high)
    return low, high


def _decimal(value: Any, default: Decimal) -> Decimal:
    return default if value is None else Decimal(repr(value))


def _inclusive(metadata: list[Any], name: str, bound: Decimal) -> bool:
    """Whether no exclusive constraint ``name`` (gt or lt) sits on ``bound``."""
    exclusive = [getattr(constraint, name, None) for constraint in metadata]
    return all(value is None or Decimal(repr(value)) != bound for value in exclusive)
