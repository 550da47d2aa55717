"""``tokentrim ls``: everything that has a name."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import resources
from typing import Annotated, Any

import typer

from tokentrim.cli import options
from tokentrim.cli.output import console, emit, plain_table
from tokentrim.errors import PluginError, unknown_name
from tokentrim.plugins.loader import DISTRIBUTION, KINDS, installed_version, registry
from tokentrim.plugins.registry import Entry, members_of

_KINDS = (*(kind.name for kind in KINDS), "config")


def ls(
    kind: Annotated[str | None, typer.Argument(help=f"One of {', '.join(_KINDS)}; default: all.")] = None,
    as_json: options.AsJson = False,
) -> None:
    """List strategies, adapters, tasks, models and shipped configurations."""
    # "strategies" and "strategy" are both natural to type.
    singular = {f"{name}s": name for name in _KINDS} | {"strategies": "strategy"}
    wanted = kind if kind is None else singular.get(kind, kind)
    if wanted is not None and wanted not in _KINDS:
        raise unknown_name("kind", wanted, _KINDS)
    rows = [row for row in all_rows() if wanted in (None, row["kind"])]
    if as_json:
        emit(rows)
        return
    out = console()
    for name in dict.fromkeys(row["kind"] for row in rows):
        table = plain_table(title=name, title_justify="left", title_style="bold")
        titles = ("name", "stage", "needs", "from", "what") if name == "strategy" else ("name", "from", "what")
        for title in titles:
            table.add_column(title, overflow="fold" if title == "what" else "ellipsis", no_wrap=title == "name")
        for row in (row for row in rows if row["kind"] == name):
            needs = [row["stage"] or "", " ".join(row["needs"] or ())] if name == "strategy" else []
            table.add_row(row["name"], *needs, row["distribution"], row["error"] or row["summary"])
        out.print(table)
        out.print()


def all_rows() -> Iterator[dict[str, Any]]:
    """One object per registered name and shipped configuration."""
    for kind in KINDS:
        yield from map(_row, registry(kind.name))
        yield from map(_row, registry(kind.name).families())
    version = installed_version()
    for file in sorted(resources.files("tokentrim.compare").iterdir(), key=lambda file: file.name):
        if file.name.endswith(".yaml"):
            first = file.read_text(encoding="utf-8").split("\n", 1)[0].lstrip("# ")
            name = file.name.removesuffix(".yaml")
            yield _object(name, "config", summary=first, distribution=DISTRIBUTION, version=version)


def _row(entry: Entry) -> dict[str, Any]:
    """One registered name, or a family of names; a strategy that cannot be imported says why."""
    stage, needs, error, family = entry.tags.get("stage"), None, None, bool(entry.tags.get("family"))
    if entry.kind == "strategy" and not family:
        try:
            found = registry(entry.kind).get(entry.name)
            stage, needs = found.stage, sorted(need.value for need in found.needs)
        except PluginError as cause:
            error = str(cause)
    summary = str(entry.tags.get("summary", ""))
    origin = entry.origin
    return _object(
        members_of(entry) if family else entry.name, entry.kind, stage=stage, needs=needs, summary=summary,
        distribution=origin.distribution, version=origin.version, plugin=origin.plugin, error=error,
    )  # fmt: skip


def _object(name: str, kind: str, **more: Any) -> dict[str, Any]:
    """A row with every key, so that a reader of the JSON need not ask which are there."""
    empty = dict.fromkeys(("stage", "needs", "summary", "distribution", "version", "plugin", "error"))
    return {"name": name, "kind": kind, **empty, **more}
