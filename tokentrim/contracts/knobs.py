"""Knobs: the parameter that budget matching turns, found and set on a strategy's fields."""

from __future__ import annotations

from decimal import Decimal
from typing import Any, Final, TypeVar

from pydantic import BaseModel, ValidationError

from tokentrim.counting.solve import DECIMALS, Knob
from tokentrim.errors import StrategyError, complaint

_COUNT_OF_RATIO: Final = {"keep_ratio": "keep_count"}  # the pair that tokentrim.counting.rounding.resolve_count reads
_BOUNDS: Final = ("gt", "ge", "lt", "le")

Fields = TypeVar("Fields", bound=BaseModel)


def knob_of(strategy: Fields, name: str | None, label: str, largest_count: int) -> Knob[Fields]:
    """The knob of a strategy, read from the declared range of a parameter.

    Args:
        strategy: whose fields are read, and set.
        name: the parameter that it declares to be its knob.
        label: what messages call it.
        largest_count: upper end of the search where an integer parameter declares none.

    Raises:
        StrategyError: when it declares none, or one that is no parameter.
    """
    if name is None:
        raise StrategyError(
            complaint(
                f"strategy {label!r}",
                "declare a budget_knob to be matched to a budget",
                None,
                "leave the budget out, or choose a strategy with a keep_ratio",
            )
        )
    fields = type(strategy).model_fields
    if name not in fields:
        known = ", ".join(sorted(fields))
        raise StrategyError(
            complaint(
                f"budget_knob of strategy {label!r}", "name one of its parameters", name, f"its parameters are {known}"
            )
        )
    integer = int in _members(fields[name].annotation) and float not in _members(fields[name].annotation)
    step = Decimal(1) if integer else Decimal(1).scaleb(-DECIMALS)
    low, high = _ends(fields[name].metadata, integer, largest_count, step)

    def turn(value: Any) -> Fields:
        return turned(strategy, name, value, label)

    return Knob(label, name, low, int((high - low) / step), step, integer, strategy, turn)


def turned(strategy: Fields, name: str, value: Any, label: str) -> Fields:
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
        reason = str(cause.errors()[0]["msg"])
        raise StrategyError(
            complaint(f"{name} of strategy {label!r}", "be valid over its declared range", value, reason)
        ) from cause


def _members(annotation: Any) -> set[Any]:
    """The types that an annotation admits: itself, or the members of a union."""
    arguments: tuple[Any, ...] = getattr(annotation, "__args__", ())
    return {annotation, *arguments}


def _ends(metadata: list[Any], integer: bool, largest_count: int, step: Decimal) -> tuple[Decimal, Decimal]:
    """The declared ends of a parameter's grid; by default [0, 1] for a ratio and [0, largest_count] for a count."""
    low, high = Decimal(0), Decimal(largest_count if integer else 1)
    for constraint in metadata:
        named = {name: getattr(constraint, name, None) for name in _BOUNDS}
        declared = {name: Decimal(repr(value)) for name, value in named.items() if value is not None}
        low = declared["gt"] + step if "gt" in declared else declared.get("ge", low)
        high = declared["lt"] - step if "lt" in declared else declared.get("le", high)
    return low, high
