"""Parameters that take each other's place, and knobs: the parameter that budget matching turns."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Final, TypeVar

from pydantic import BaseModel, ValidationError, model_validator

from tokentrim.counting.solve import DECIMALS, Knob
from tokentrim.errors import StrategyError, complaint

_COUNT_OF_RATIO: Final = {"keep_ratio": "keep_count"}  # the pair that tokentrim.counting.rounding.resolve_count reads
_BOUNDS: Final = ("gt", "ge", "lt", "le")

Fields = TypeVar("Fields", bound=BaseModel)


@dataclass(frozen=True)
class ReplacedBy:
    """Metadata of a parameter with a default, which is None where another one is given.

    ``keep_ratio: Annotated[float | None, ReplacedBy("keep_count")] = 0.25``: writing both is an error, labels leave the
    None out, and budget matching takes the other back.

    Attributes:
        parameter: the other one; "" where a validator of the class sees to several.
        what: they set, in the words of an error.
    """

    parameter: str = ""
    what: str = "budget"


class Replacing(BaseModel):
    """A model whose parameters may say :class:`ReplacedBy`."""

    @model_validator(mode="before")
    @classmethod
    def _one_of_two(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        given: dict[str, Any] = {**data}
        for name, other in _replaced(cls).items():
            if not other.parameter:
                continue
            replaced = given.get(other.parameter) is not None
            if replaced and name not in given:
                given[name] = None
            elif replaced == (given.get(name, 0.0) is not None):
                both = {key: given.get(key) for key in (name, other.parameter)}
                whom = f"the {other.what} of strategy {getattr(cls, 'name', '')!r}"
                raise ValueError(complaint(whom, f"be either {name} or {other.parameter}", both,
                                           "set exactly one of the two"))  # fmt: skip
        return given


def _replaced(cls: type[BaseModel]) -> dict[str, ReplacedBy]:
    """Parameters that another one may take the place of."""
    fields = cls.model_fields.items()
    return {name: other for name, field in fields for other in field.metadata if isinstance(other, ReplacedBy)}


def changed(strategy: BaseModel) -> dict[str, Any]:
    """Parameters that differ from their defaults, without those that others have replaced."""
    replaced = _replaced(type(strategy))
    values = strategy.model_dump(exclude_defaults=True)
    return {name: value for name, value in values.items() if value is not None or name not in replaced}


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
    rival = _replaced(type(strategy)).get(name, ReplacedBy()).parameter or _COUNT_OF_RATIO.get(name)
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
