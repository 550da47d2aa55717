"""From pydantic's errors to the house grammar: place, what of whom, constraint, value, what to do."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from inspect import isclass
from pathlib import Path
from types import UnionType
from typing import Any, Final, Literal, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from tokentrim.config.yaml_reader import Where
from tokentrim.errors import ConfigError, TokentrimError, complaint, nearest, sentence, suggestion

Model = TypeVar("Model", bound=BaseModel)

# What a value must be, by the beginning of pydantic's name for the error.
_KINDS: Final = {
    "int_": "be a whole number",
    "float_": "be a number",
    "finite_number": "be a finite number",
    "bool_": "be true or false",
    "string_": "be text",
    "path_": "be a path",
    "list_": "be a list",
    "tuple_": "be a list",
    "set_": "be a list",
    "frozen_set_": "be a list",
    "dict_": "be a mapping",
    "mapping_": "be a mapping",
    "model_": "be a mapping",
    "none_": "be null",
}

_BOUNDS: Final = ("gt", "ge", "lt", "le")
_YES: Final = ("yes", "y", "on", "true", "t", "1")
_NO: Final = ("no", "n", "off", "false", "f", "0")


def check(model: type[Model], values: object, whom: str, where: Where, *, context: Any = None) -> Model:
    """An object of ``model`` made from ``values``.

    Args:
        model: a pydantic model.
        values: a mapping of its fields.
        whom: what the model is to the user, such as ``"strategy 'fastv'"``.
        where: the place of ``values``.
        context: handed to the model's validators.

    Raises:
        ConfigError: with one line for every value that is wrong.
        UnknownNameError: when a name is not registered.
    """
    if not isinstance(values, Mapping):
        raise where.error(complaint(whom, "be a mapping of keys to values", values))
    alike = _look_alikes(model, values, whom, where)
    try:
        found = model.model_validate(dict(values), context=context)
    except ValidationError as error:
        grouped: dict[tuple[str | int, ...], list[ErrorDetails]] = {}
        for detail in error.errors(include_url=False):
            unknown = detail["type"] in ("extra_forbidden", "missing")
            grouped.setdefault(detail["loc"] if unknown else _path(detail["loc"], values), []).append(detail)
        lines = [_line(path, details, model, whom, where) for path, details in grouped.items() if path not in alike]
        raise ConfigError("\n".join((*alike.values(), *lines))) from error
    except ConfigError:
        raise
    except TokentrimError as error:  # a validator's own complaint
        place = str(where)
        if not place or str(error).startswith(where.source or place):  # of what lies deeper, which it has named
            raise
        raise type(error)(f"{place}: {error}") from error
    if alike:
        raise ConfigError("\n".join(alike.values()))
    return found


def _path(location: Sequence[str | int], values: object) -> tuple[str | int, ...]:
    """The part of pydantic's location that the user wrote; the rest names members of a union."""
    path: list[str | int] = []
    for key in location:
        try:
            values = values[key]  # type: ignore[index]  # any container, or the end of the path
        except (KeyError, IndexError, TypeError):
            break
        path.append(key)
    return tuple(path)


def _line(
    path: tuple[str | int, ...], details: list[ErrorDetails], model: type[BaseModel], whom: str, where: Where
) -> str:
    """The sentence for all that is wrong at one place."""
    detail = details[0]
    place = where.at(*path)
    fields = model.model_fields
    owner = whom if len(path) < 2 else ".".join(str(key) for key in path[:-1]) + f" of {whom}"
    last = str(path[-1]) if path else ""
    if detail["type"] == "extra_forbidden":
        hint = suggestion(last, fields) if len(path) == 1 else "remove it"
        return str(place.error(complaint(f"each key of {owner}", "be a known one", last, hint)))
    if detail["type"] == "missing":
        field = fields.get(str(path[0])) if len(path) == 1 else None
        hint = field.description if field is not None and field.description else "add it"
        return str(place.error(complaint(f"{last} of {owner}", "be given", hint=hint)))
    what = f"{last} of {owner}" if path else whom
    if detail["type"] in ("value_error", "assertion_error"):
        message = str(detail.get("ctx", {}).get("error", detail["msg"]))
        # A validator that speaks the house grammar has said whom it means.
        return str(place.error(message if " must " in message else f"{what}: {sentence(message)}"))
    field = fields.get(str(path[0])) if path else None
    must = " or ".join(dict.fromkeys(_must(each, field) for each in details))
    return str(place.error(complaint(what, must, detail["input"], _hint(detail))))


def _must(detail: ErrorDetails, field: FieldInfo | None) -> str:
    """The constraint that a value breaks."""
    kind, context = detail["type"], detail.get("ctx", {})
    if kind in ("literal_error", "enum"):
        return f"be {context['expected']}"
    if kind.startswith(("greater_than", "less_than")):
        declared = {
            key: value
            for bound in (field.metadata if field is not None else ())
            for key in _BOUNDS
            if (value := getattr(bound, key, None)) is not None
        }
        return _range({**declared, **{key: context[key] for key in _BOUNDS if key in context}})
    if kind.endswith("too_short"):
        return "not be empty" if context["min_length"] == 1 else f"have at least {context['min_length']} entries"
    for prefix, text in _KINDS.items():
        if kind.startswith(prefix):
            return text
    message = detail["msg"].removeprefix("Input should ")
    return message[:1].lower() + message[1:]


def _range(bounds: Mapping[str, float]) -> str:
    """``lie in (0, 1]`` from the bounds ``gt``, ``ge``, ``lt`` and ``le`` that are there."""
    low = f"({bounds['gt']:g}" if "gt" in bounds else f"[{bounds['ge']:g}" if "ge" in bounds else ""
    high = f"{bounds['lt']:g})" if "lt" in bounds else f"{bounds['le']:g}]" if "le" in bounds else ""
    if low and high:
        return f"lie in {low}, {high}"
    if low:
        return f"be above {low[1:]}" if low[0] == "(" else f"be at least {low[1:]}"
    return f"be below {high[:-1]}" if high[-1] == ")" else f"be at most {high[:-1]}"


def _hint(detail: ErrorDetails) -> str:
    """What to do about one value, where there is something to say."""
    kind, value = detail["type"], detail["input"]
    if kind in ("literal_error", "enum") and isinstance(value, str):
        options = [
            word.strip("'\" ") for word in str(detail.get("ctx", {})["expected"]).replace(" or ", ", ").split(",")
        ]
        close = nearest(value, options)
        return f"Did you mean {close!r}?" if close else ""
    if kind.startswith("string_") and isinstance(value, bool | int | float):
        return f"put it in quotes if the text {str(value).lower()!r} is meant"
    return ""


def _look_alikes(
    model: type[BaseModel], values: Mapping[Any, Any], whom: str, where: Where, above: tuple[str | int, ...] = ()
) -> dict[tuple[str | int, ...], str]:
    """A message for each value that pydantic would quietly turn into a number or boolean, by its path.

    It would read true as 1, 0 and the text ``no`` as false, and ``010`` and ``1_0`` as 10.
    """
    found: dict[tuple[str | int, ...], str] = {}
    for key, value in values.items():
        field = model.model_fields.get(key)
        if field is None:
            continue
        listed = isinstance(value, list | tuple)
        wanted = _scalars(field.annotation, within=listed)
        places: list[tuple[tuple[str | int, ...], Any]] = [((*above, key), value)]
        if listed:
            places = [((*above, key, index), item) for index, item in enumerate(value)]
        for kind in _members(field.annotation) if isinstance(value, Mapping) else ():
            if get_origin(kind) not in (dict, Mapping):
                continue
            keys, wanted = (_members(part) for part in get_args(kind))
            for name in value:  # text for a number is right: JSON knows no other keys
                if isinstance(name, bool) and _looks_alike(name, keys):
                    what = f"each key of {key} of {whom}"
                    found[(*above, key, name)] = str(where.at(key).error(complaint(what, "be a number", name)))
            places = [((*above, key, name), item) for name, item in value.items()]
        for path, item in places:
            inner = next((kind for kind in wanted if isclass(kind) and issubclass(kind, BaseModel)), None)
            if inner is not None and isinstance(item, Mapping):
                found |= _look_alikes(inner, item, whom, where, path)
            if _looks_alike(item, wanted):
                what = " of ".join((*(str(part) for part in reversed(path)), whom))
                must = "be a number" if wanted & {int, float} else "be true or false"
                found[path] = str(where.at(*path).error(complaint(what, must, item, _meant(item, wanted))))
    return found


def _scalars(annotation: Any, *, within: bool) -> set[Any]:
    """The types that a value of this annotation may have; ``within``: that an item of its list may have."""
    members = _members(annotation)
    if not within:
        return members
    lists = [member for member in members if get_origin(member) in (tuple, list)]
    return {item for member in lists for item in get_args(member)}


def _members(annotation: Any) -> set[Any]:
    """The types that an annotation allows."""
    return set(get_args(annotation)) if get_origin(annotation) in (Union, UnionType) else {annotation}


def _looks_alike(value: object, wanted: set[Any]) -> bool:
    """Whether a value could be taken for the number or boolean that is wanted, and is neither."""
    if isinstance(value, bool):
        return bool(wanted & {int, float}) and bool not in wanted
    if isinstance(value, int | float):
        return bool in wanted and not wanted & {int, float}
    return isinstance(value, str) and bool(wanted & {int, float, bool}) and not _takes_text(wanted)


def _takes_text(wanted: set[Any]) -> bool:
    """Whether text is a right value too, as it is or as a choice of words."""
    return any(
        member in (str, Path, Any)
        or (get_origin(member) is Literal and any(isinstance(v, str) for v in get_args(member)))
        for member in wanted
    )


def _meant(value: object, wanted: set[Any]) -> str:
    """What to write instead of a look-alike."""
    if isinstance(value, bool):
        return ""
    word = str(value).strip().lower()
    if not wanted & {int, float}:
        spelt = {**dict.fromkeys(_YES, "true"), **dict.fromkeys(_NO, "false")}.get(word)
        only = "only true and false are booleans in YAML 1.2"
        return f"{only}: write {spelt}" if spelt else only
    plain = word.replace("_", "").replace(",", ".").removesuffix("%").strip()
    try:
        number = float(plain) / (100 if word.endswith("%") else 1)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        return "it is text: write a number, as in 0.25 or 1e-4"
    return f"it is text, by its quotes or its spelling: write {number:.12g}"
