"""Knobs: the parameter that budget matching turns, found and set on a strategy's fields."""

from __future__ import annotations

from decimal import Decimal
from typing import Any, Final, TypeVar

from pydantic import BaseModel, ValidationError

from tokentrim.counting.solve import DECIMALS, Knob
from tokentrim.errors import StrategyError, complaint

_COUNT_OF_RATIO: Final = {"keep_ratio": "keep_count"}  # the pair that tokentrim.counting.rounding.resolve_count reads

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
    low, high = _bounds(fields[name].metadata, integer, largest_count)
    step = Decimal(1) if integer else Decimal(1).scaleb(-DECIMALS)
    low = low if _inclusive(fields[name].metadata, "gt", low) else low + step
    high = high if _inclusive(fields[name].metadata, "lt", high) else high - step

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
