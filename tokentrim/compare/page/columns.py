"""Which columns a table of the page has: the known ones in their order, then whatever else the rows hold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from tokentrim.runs.figures import FIGURES, GROUPS, Figure

# What a row's own heading says already, or what every row of a table has in common.
_OF_CELLS: Final = frozenset({"method", "model", "budget_requested", "unit", "skipped"})
_OF_MEANS: Final = frozenset({"method", "model", "metric", "tasks", "budget_requested", "matched_by", "seed", "unit"})


@dataclass(frozen=True)
class Value:
    """One cell of a table: the text, and what it is sorted by (None goes last in either direction)."""

    text: str
    sort: float | str | None


def columns_of(rows: Sequence[Mapping[str, Any]], more: bool = False) -> list[Figure]:
    """The columns that some row has a value in: the known ones by group, then the others.

    Args:
        rows: of a summary.
        more: whether to show also what tells cells apart: task, metric, strategy, key.
    """
    flat = [flattened(row) for row in rows]
    keys = list(dict.fromkeys(key for row in flat for key, value in row.items() if value is not None))
    names, hidden = {figure.name for figure in FIGURES}, _OF_CELLS if more else _OF_MEANS
    known = [figure for group in GROUPS for figure in FIGURES if figure.group == group]
    others = [_unknown(key, flat) for key in keys if key not in names]
    return [figure for figure in known if figure.name in keys and figure.name not in hidden] + others


def _unknown(key: str, rows: Sequence[Mapping[str, Any]]) -> Figure:
    """A column for a key that is no figure of this version: a later one's, or a plugin's."""
    title = key.replace("_", " ").replace(".", ": ")
    values = [row[key] for row in rows if row.get(key) is not None]
    if not all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
        return Figure(key, title, "text", "more", "")
    last = key.rsplit(".", 1)[-1]
    if last.startswith("p_"):
        return Figure(key, title, "p", "tests", "")
    if "seconds" in last:
        return Figure(key, title.replace("seconds", "ms"), "seconds", "times", "")
    if "accuracy" in last:
        return Figure(key, title, "score", "score", "")
    if last.endswith(("_ratio", "_share", "_low", "_high")):
        return Figure(key, title, "share", "more", "")
    return Figure(key, title, "number", "more", "")


def flattened(row: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A row without nesting: ``{"a": {"b": 1}}`` is ``{"a.b": 1}``; lists become text."""
    flat: dict[str, Any] = {}
    for key, value in row.items():
        if isinstance(value, Mapping) and prefix + key != "strategy":
            flat |= flattened(value, f"{prefix}{key}.")
        elif isinstance(value, Mapping):
            flat[prefix + key] = inline(value)
        elif isinstance(value, list | tuple):
            flat[prefix + key] = ", ".join(inline(item) for item in value)
        else:
            flat[prefix + key] = value
    return flat


def inline(value: Any) -> str:
    """Any plain data on one line, as YAML would write it; what was left to its default is left out of mappings."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {inline(item)}" for key, item in value.items() if item is not None) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(inline(item) for item in value) + "]"
    # Not by equality: 0 equals False.
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def written(row: Mapping[str, Any], column: Figure) -> Value:
    """A row's value in a column."""
    value: Any = row.get(column.name)
    if value is None:
        return Value("", None)
    if isinstance(value, bool):
        return Value("yes" if value else "no", str(value))
    if not isinstance(value, int | float):
        return Value(str(value), str(value))
    if column.kind == "p":
        return Value("< 0.001" if value < 0.001 else f"{value:.3f}", value)
    if column.kind == "seconds":
        return Value(_significant(1000 * value), value)
    if column.kind == "share" or (column.kind == "score" and row.get("unit", "%") == "%"):
        return Value(f"{100 * value:.1f}", value)
    return Value(f"{value:.1f}" if column.kind == "score" else _significant(value), value)


def _significant(value: float) -> str:
    """A number with as many digits as say something, never as a power of ten where it need not be."""
    if value == round(value) and abs(value) < 1e9:
        return str(round(value))
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.3g}"
