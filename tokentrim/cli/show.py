"""``tokentrim show``: all there is to know of one name."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable
from types import EllipsisType, NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import typer
from pydantic.fields import FieldInfo

from tokentrim.cli import options
from tokentrim.cli.citations import BLOCK
from tokentrim.cli.output import console, emit, plain_table
from tokentrim.loading import unknown_model
from tokentrim.plugins.loader import KINDS, registry
from tokentrim.plugins.registry import Entry

_BOUNDS = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<"}

_ROLE = re.compile(r":\w+:`~?(?:[\w.]*\.)?(\w+)`")
"""A reference to a name, as the documentation resolves it."""
_CODE = re.compile(r"`+([^`]+)`+")


def show(
    name: Annotated[str, typer.Argument(help="A registered name; see 'tokentrim ls'.")],
    as_json: options.AsJson = False,
) -> None:
    """Describe a strategy with its parameters and citation, or an adapter, task or model."""
    entry = find(name)
    about = describe(entry)
    if as_json:
        emit(about)
        return
    out = console()
    out.print(f"{entry.name}: {entry.kind} of {entry.origin}", style="bold")
    if about["documentation"]:
        if out.is_terminal:
            from rich.markdown import Markdown

            out.print(Markdown(about["documentation"]))
        else:
            out.print(_CODE.sub(r"\1", about["documentation"]), soft_wrap=True, markup=False)
    facts = {
        key: about[key]
        for key in ("stage", "needs", "budget_knob", "folder", "metric", "max_new_tokens")
        if key in about
    }
    for key, value in facts.items():
        text = ", ".join(value) if isinstance(value, list) else value
        out.print(f"{key.replace('_', ' ')}: {text if text not in (None, '') else '-'}")
    if about.get("parameters"):
        table = plain_table("parameter", "type", "default", "range", "meaning")
        for parameter in about["parameters"]:
            table.add_row(*(str(parameter[key]) for key in ("name", "type", "default", "range", "description")))
        out.print(table)
    if about.get("citation"):
        out.print("citation:", style="bold")
        out.print(about["citation"], soft_wrap=True)


def find(name: str) -> Entry:
    """The entry of a name, whatever its kind.

    Raises:
        UnknownNameError: when no kind has it.
        PluginError: when a plugin would have provided it and failed.
    """
    every = [registry(kind.name) for kind in KINDS]
    for registered in every:
        if registered.knows(name):
            return registered.entry(name)
    names = [known for registered in every for known in registered.names()]
    raise every[0].unknown(unknown_model("name", name, names))


def describe(entry: Entry) -> dict[str, Any]:
    """What can be said of an entry, as plain data."""
    found: Any = registry(entry.kind).get(entry.name)
    target: Any = found if isinstance(found, type) else type(found)
    documented = "" if entry.kind == "model" else inspect.cleandoc(target.__doc__ or "")
    about: dict[str, Any] = {
        "name": entry.name,
        "kind": entry.kind,
        "distribution": entry.origin.distribution,
        "version": entry.origin.version,
        "summary": entry.tags.get("summary", ""),
        "documentation": _ROLE.sub(r"`\1`", BLOCK.sub("", documented)).strip() or entry.tags.get("summary", ""),
    }
    if entry.kind == "strategy":
        cited = BLOCK.search(documented)
        about |= {
            "stage": found.stage,
            "needs": sorted(need.value for need in found.needs),
            "budget_knob": found.budget_knob,
            "count_is_static": found.count_is_static,
            "merges": found.merges,
            "trainable": found.trainable,
            "parameters": parameters_of(found),
            "citation": inspect.cleandoc(cited[1]) if cited else None,
        }
    elif entry.kind == "adapter":
        about["model_types"] = list(found.model_types)
    elif entry.kind == "model":
        about["folder"] = str(found())
    elif entry.kind == "task":
        about |= {"metric": found.metric, "max_new_tokens": found.max_new_tokens, "documentation": found.description}
    return about


def parameters_of(strategy: Any) -> list[dict[str, Any]]:
    """Name, type, default, range and meaning of every parameter of a strategy class."""
    rows: list[dict[str, Any]] = []
    for name, field in strategy.model_fields.items():
        rows.append(
            {
                "name": name,
                "type": _type_text(field.annotation),
                "default": None if field.is_required() else _plain(field.get_default(call_default_factory=True)),
                "range": ", ".join(_bounds(field.metadata)),
                "description": field.description or "",
            }
        )
    return rows


def _bounds(metadata: Iterable[Any]) -> list[str]:
    """Bounds among what an annotation comes with, such as ``>= 1``."""
    return [
        f"{sign} {getattr(bound, key)}"
        for bound in metadata
        for key, sign in _BOUNDS.items()
        if getattr(bound, key, None) is not None
    ]


def _type_text(annotation: Any) -> str:
    """An annotation as a user would write it; what lies inside comes with its bounds."""
    origin, inside = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        kept = (
            bound for about in inside[1:] for bound in (about.metadata if isinstance(about, FieldInfo) else [about])
        )
        bounds = ", ".join(_bounds(kept))
        return f"{_type_text(inside[0])} ({bounds})" if bounds else _type_text(inside[0])
    if origin is Literal:
        return " | ".join(str(choice) for choice in inside)
    if origin in (Union, UnionType):
        return " | ".join(map(_type_text, inside))
    if origin is not None and inside:
        return f"{origin.__name__}[{', '.join(map(_type_text, inside))}]"
    if isinstance(annotation, EllipsisType):
        return "..."
    if annotation is NoneType:
        return "None"
    return annotation.__name__ if inspect.isclass(annotation) else str(annotation)


def _plain(value: Any) -> Any:
    """A default as JSON can hold it."""
    return value if isinstance(value, str | int | float | bool | None) else str(value)
