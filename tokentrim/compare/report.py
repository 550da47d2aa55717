"""The reports of a comparison: which files there are, and ``report.md`` itself."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from tokentrim.compare.readings import MEANS_READING, SPLIT_READING, time_reading
from tokentrim.compare.tables import (
    Data,
    markdown,
    overall_grid,
    split_grid,
    task_grid,
    time_grid,
    title_of,
    unreached,
)
from tokentrim.errors import ConfigError, UnsupportedError, complaint, suggestion
from tokentrim.runs.files import write_json, write_lines, write_text

if TYPE_CHECKING:
    from tokentrim.compare.gallery import Gallery
    from tokentrim.compare.summary import Summary

FORMATS: Final = ("md", "csv", "json", "html", "png")
_FORMULA: Final = ("=", "+", "-", "@")
_LIBRARIES: Final = {"html": "jinja2", "png": "matplotlib"}


def publish(summary: Summary, gallery: Gallery, formats: Sequence[str] = FORMATS) -> Summary:
    """Write the record (``summary.json``, ``gallery.json``) into the results folder, and reports in ``formats``.

    Returns:
        The summary, with every file that was written, by name.
    """
    folder = summary.folder
    files: dict[str, Path] = {"summary": folder / "summary.json", "gallery": folder / "gallery.json"}
    texts: dict[str, str] = {}
    if "csv" in formats:
        files["csv"], texts["csv"] = folder / "summary.csv", csv_text(summary)
    if "png" in formats:
        files |= _draw(summary, gallery)
    if "md" in formats:
        files["report"], texts["report"] = folder / "report.md", report(summary, files)
    if "html" in formats:
        from tokentrim.compare.page import page

        files["page"], texts["page"] = folder / "report.html", page(summary, gallery)
    # Last, so that numbers that no report can be made of replace nothing.
    write_json(files["summary"], summary.data)
    write_lines(files["gallery"], [gallery])
    for name, text in texts.items():
        write_text(files[name], text)
    return replace(summary, files=summary.files | files)


def _draw(summary: Summary, gallery: Gallery) -> dict[str, Path]:
    """Draw every model's pictures."""
    from tokentrim.compare.pictures import kept_picture
    from tokentrim.compare.plots import pareto

    files: dict[str, Path] = {}
    for number, model in enumerate(summary.data["models"]):
        scores, kept = picture_key("pareto", number), picture_key("kept", number)
        if any(row["model"] == model and row["accuracy"] is not None for row in summary.overall):
            files[scores] = pareto(summary, model, summary.folder / f"{scores}.png")
        drawn = kept_picture(gallery, model, summary.folder / f"{kept}.png")
        if drawn is not None:
            files[kept] = drawn
    return files


def require_formats(formats: Sequence[str]) -> tuple[str, ...]:
    """The formats that were asked for, each once and in the order in which they are written; all where none was.

    Raises:
        ConfigError: for one that does not exist.
        UnsupportedError: when a library that one of them needs is not installed.
    """
    for name in formats:
        if name not in FORMATS:
            raise ConfigError(
                complaint("the format of a report", "be one that exists", name, suggestion(name, FORMATS))
            )
    wanted = tuple(name for name in FORMATS if name in formats or not formats)
    for name in wanted:
        library = _LIBRARIES.get(name)
        if library is not None and find_spec(library) is None:
            raise UnsupportedError(
                complaint(f"a report as {name}", f"find {library}", hint="pip install 'tokentrim-vlm[report]'")
            )
    return wanted


def picture_key(name: str, number: int) -> str:
    """The name of a picture about model ``number`` of a comparison; the first model's has the plain name."""
    return f"{name}-{number + 1}" if number else name


def report(summary: Summary, pictures: dict[str, Path]) -> str:
    """The report as Markdown."""
    data = summary.data
    parts = [
        f"# {title_of(data)}",
        f"Comparison {data['config_hash']}",
        f"```\n{data['command']}\n```",
        _differences(data),
        _failures(summary),
    ]
    for number, model in enumerate(data["models"]):
        key = picture_key("pareto", number)
        plot = [f"![score against three costs]({pictures[key].name})"] if key in pictures else []
        parts += [f"## {model}", *plot, markdown(*overall_grid(data, model))]
    parts.append(MEANS_READING)
    parts += [part for model in data["models"] for part in _split(data, model)]
    parts += [part for model in data["models"] for part in _time(data, model)]
    for number, model in enumerate(data["models"]):
        of = f" of {model}" if len(data["models"]) > 1 else ""
        if (key := picture_key("kept", number)) in pictures:
            parts += [
                f"## What was kept{of}",
                "What each method kept from the named layer on, how many, and its answer; faded patches are gone.",
                f"![kept patches of each method]({pictures[key].name})",
            ]
    for model in data["models"]:
        parts += [
            f"## {model}, task by task",
            "Scores in per cent; `*` is above random at the same budget, `†` below it (p < 0.05, paired, corrected for "
            "all tests of the table).",
            markdown(*task_grid(data, model)),
        ]
    parts += [_skipped(data), "## Notes", "\n".join(f"- {note}." for note in data["notes"]), _provenance(data)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _split(data: Data, model: str) -> list[str]:
    """Easy and hard questions, where there is such a split."""
    header, lines = split_grid(data, model)
    return [f"## {model}, easy and hard questions", markdown(header, lines), SPLIT_READING] if lines else []


def _time(data: Data, model: str) -> list[str]:
    """The timing pass, where there was one."""
    header, lines = time_grid(data, model)
    if not lines:
        return []
    return [f"## {model}, time", markdown(header, lines), time_reading(data, model)]


def _differences(data: Data) -> str:
    """A warning, where merged runs differ in what may change a score."""
    if not data.get("differences"):
        return ""
    lines = "\n".join(f"- {line}" for line in data["differences"])
    warning = "**Not one run: what is compared differs.** Differences between methods may be differences between runs."
    return f"{warning}\n\n{lines}"


def _failures(summary: Summary) -> str:
    """A warning, where anything failed."""
    if not summary.failures:
        return ""
    return f"**{summary.failures} failed.** They are in no score. The first: {summary.first_cause}"


def _skipped(data: Data) -> str:
    """Budgets that could not be reached."""
    if not data["skipped"]:
        return ""
    return "## Not reachable\n\n" + markdown(*unreached(data))


def _provenance(data: Data) -> str:
    """Where the numbers come from."""
    lines = [f"- run {run['name']}: {run['config_hash']}, `{run['command']}`" for run in data.get("sources", ())]
    lines += [f"- {name} {number}" for name, number in data["versions"].items()]
    for name, about in data["models"].items():
        said = ", ".join(f"{key} {value}" for key, value in about.items() if key != "folder" and value is not None)
        lines.append(f"- model {name}: {said}")
    lines.append(f"- batches of {data['config']['batch_size']}, {data['config']['split']} split, seeds {data['seeds']}")
    return "## Provenance\n\n" + "\n".join(lines)


def csv_text(summary: Summary) -> str:
    """One line per cell; what has parts, such as a strategy, is JSON within its column."""
    text = io.StringIO()
    names = list(dict.fromkeys(name for row in summary.cells for name in row))
    lines = csv.writer(text)
    lines.writerow(map(_plain, names))
    lines.writerows([_plain(row.get(name)) for name in names] for row in summary.cells)
    return text.getvalue()


def _plain(value: Any) -> Any:
    """A value as a spreadsheet may read it: what has parts as JSON, and no text that it would run as a formula."""
    if isinstance(value, dict | list):
        return json.dumps(value, ensure_ascii=False)
    return f"'{value}" if isinstance(value, str) and value.lstrip().startswith(_FORMULA) else value
