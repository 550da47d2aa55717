"""``report.html``: the whole report in one file that needs no network, made from summary and gallery alone."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from functools import cache
from importlib import resources
from typing import TYPE_CHECKING, Any, Final

from tokentrim.compare.families import charts_of
from tokentrim.compare.page import columns
from tokentrim.compare.readback import KNOWN
from tokentrim.compare.readings import SPLIT_READING, time_reading
from tokentrim.compare.tables import (
    METRICS,
    Data,
    against_random,
    budget_text,
    by_task,
    mark,
    metrics_of,
    roles_of,
    row_name,
    score_text,
    split_grid,
    time_grid,
    title_of,
    unreached,
)
from tokentrim.drawing.style import Look
from tokentrim.runs.cells import REFERENCE
from tokentrim.runs.figures import FOLDED, GROUPS, TEXTUAL, Row

if TYPE_CHECKING:
    from tokentrim.compare.gallery import Gallery
    from tokentrim.compare.summary import Summary

# Shapes around (0, 0), under matplotlib's letters.
_MARKERS: Final = {
    "o": "M-4.5 0a4.5 4.5 0 1 0 9 0a4.5 4.5 0 1 0-9 0z",
    "s": "M-4-4h8v8h-8z",
    "D": "M0-5.4L5.4 0 0 5.4-5.4 0z",
    "^": "M0-5L5.2 4.2h-10.4z",
    "v": "M0 5L5.2-4.2h-10.4z",
    "P": "M-1.7-5h3.4v3.3h3.3v3.4h-3.3v3.3h-3.4v-3.3h-3.3v-3.4h3.3z",
    "X": "M-2.6-5L0-2.4 2.6-5 5-2.6 2.4 0 5 2.6 2.6 5 0 2.4-2.6 5-5 2.6-2.4 0-5-2.6z",
    "x": "M-4-4L4 4M-4 4L4-4",
}
_ROLES: Final = {
    "control": "control",
    "bound": "upper bound: is told where the answer lies",
    "reference": "unpruned",
    "text": "control: no picture from the boundary on",
}
_PLACED: Final = KNOWN | {"executor", "sources", "differences"}
"""What the page shows in places of its own; every other key of a summary is shown as it is."""


def page(summary: Summary, gallery: Gallery) -> str:
    """The page as text."""
    files = resources.files("tokentrim.compare.page")
    script, style = ((files / f"page.{kind}").read_text(encoding="utf-8") for kind in ("js", "css"))
    return _template().render(
        script=script,
        style=style,
        # Only this script may run, and nothing may be fetched, whatever a value smuggles in.
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        **_content(summary, gallery),
    )


@cache
def _template() -> Any:
    """How the page is laid out; compiled once."""
    import jinja2  # found there by require_formats

    # Every value is escaped, because answers, labels and notes come from tasks and plugins.
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True,
                                     lstrip_blocks=True)  # fmt: skip
    text = (resources.files("tokentrim.compare.page") / "page.html.j2").read_text(encoding="utf-8")
    return environment.from_string(text)


def _content(summary: Summary, gallery: Gallery) -> dict[str, Any]:
    """What the template shows."""
    data = summary.data
    look = roles_of(data)
    numbers = {name: number for number, name in enumerate(look)}
    return {
        "data": {"differences": [], "sources": [], "executor": None, **data},
        "title": title_of(data),
        "look": look,
        "number": numbers,
        "roles": _ROLES,
        "markers": _MARKERS,
        "glance": _glance(summary, look),
        "models": [_model(summary, model, look) for model in data["models"]],
        "cells": _table([*summary.cells, *data["pooled"]], more=True),
        "groups": GROUPS,
        "folded": FOLDED,
        "textual": TEXTUAL,
        "gallery": _shown(gallery, look, numbers),
        "skipped": unreached(data),
        "further": {key: _further(value) for key, value in data.items() if key not in _PLACED and value},
        "inline": columns.inline,
    }


def _model(summary: Summary, model: str, look: Mapping[str, Look]) -> dict[str, Any]:
    """One model's part: charts and a table per metric, and the scores task by task."""
    data = summary.data
    own = [row for row in summary.overall if row["model"] == model]
    parts: list[dict[str, Any]] = []
    for metric in metrics_of(own):
        rows = [row for row in own if row["metric"] == metric]
        charts = charts_of(data, rows, look)
        tasks = list(dict.fromkeys(task for row in rows for task in row["tasks"]))
        parts.append({"title": METRICS.get(metric, metric), "tasks": tasks, "charts": charts, "table": _table(rows)})
    return {
        "name": model,
        "parts": parts,
        "tasks": _tasks(data, model),
        "grids": [
            {"title": title, "about": about, "header": grid[0], "lines": grid[1]}
            for title, grid, about in (
                ("Easy and hard questions", split_grid(data, model), SPLIT_READING),
                ("Time", time_grid(data, model), time_reading(data, model)),
            )
            if grid[1]
        ],
    }


def _table(rows: Sequence[Row], more: bool = False) -> dict[str, Any]:
    """A table's columns and lines."""
    found = columns.columns_of(rows, more)
    lines: list[dict[str, Any]] = []
    for row in rows:
        flat = columns.flattened(row)
        values = [columns.written(flat, column) for column in found]
        lines.append({"row": row, "name": row_name(row), "budget": budget_text(row), "values": values})
    groups = {column.group for column in found}
    return {"columns": found, "lines": lines, "groups": [group for group in GROUPS if group in groups]}


def _tasks(data: Data, model: str) -> dict[str, Any]:
    """Scores of every method and budget on every task."""
    tasks, grouped = by_task(data, model)
    lines: list[dict[str, Any]] = []
    for found in grouped:
        row = next(iter(found.values()))
        values = [
            columns.Value(mark(found[task]), found[task]["accuracy"]) if task in found else columns.Value("–", None)
            for task in tasks
        ]
        lines.append({"row": row, "name": row_name(row), "budget": budget_text(row), "values": values})
    return {"tasks": tasks, "lines": lines}


def _glance(summary: Summary, look: Mapping[str, Look]) -> list[dict[str, Any]]:
    """Per model, metric and budget: the method with the highest mean score, beside the marks that it is judged by."""
    found: dict[tuple[Any, ...], list[Row]] = {}
    for row in summary.overall:
        if row["accuracy"] is not None and row["budget_requested"] is not None:
            found.setdefault((row["model"], row["metric"], row["budget_requested"], row["matched_by"]), []).append(row)
    lines: list[dict[str, Any]] = []
    for (model, metric, budget, _), rows in found.items():
        methods = [row for row in rows if look[row["method"]].role == "method"]
        if not methods:
            continue
        best = max(methods, key=lambda row: row["accuracy"])
        beside = [row for row in summary.overall if (row["model"], row["metric"]) == (model, metric)]
        random = next((r for r in beside if (r["method"], r["budget_requested"]) == ("random", budget)), None)
        none = next((row for row in beside if row["method"] == REFERENCE), None)
        lines.append(
            {
                "model": model,
                "metric": METRICS.get(metric, metric),
                "budget": budget_text(best),
                "best": best,
                "ties": list(dict.fromkeys(r["method"] for r in methods if r["accuracy"] == best["accuracy"])),
                "of": len(methods),
                "score": score_text(best),
                "random": "" if random is None else score_text(random),
                "none": "" if none is None else score_text(none),
                "p": against_random(best),
            }
        )
    models, metrics = list(summary.data["models"]), [METRICS.get(name, name) for name in metrics_of(summary.overall)]
    return sorted(lines, key=lambda line: (models.index(line["model"]), metrics.index(line["metric"])))


def _shown(gallery: Gallery, look: Mapping[str, Look], numbers: Mapping[str, int]) -> dict[str, Any]:
    """The gallery with what the script needs to draw each method as the charts do."""
    methods = {
        name: {
            "number": numbers[name],
            "marker": _MARKERS[found.marker],
            "role": found.role,
            "about": _ROLES.get(found.role, ""),
        }
        for name, found in look.items()
    }
    return {**gallery, "look": methods}


def _further(value: Any) -> dict[str, Any]:
    """A value of a summary that this page has no place for: as a table, as pairs, or as text."""
    if isinstance(value, list) and all(isinstance(item, Mapping) for item in value):
        flat = [columns.flattened(item) for item in value]
        keys = list(dict.fromkeys(key for row in flat for key in row))
        lines = [[columns.inline(row[key]) if row.get(key) is not None else "" for key in keys] for row in flat]
        return {"kind": "table", "keys": keys, "lines": lines}
    if isinstance(value, Mapping):
        return {"kind": "pairs", "pairs": [(key, columns.inline(item)) for key, item in value.items()]}
    items = value if isinstance(value, list) else [value]
    return {"kind": "list", "items": [columns.inline(item) for item in items]}
