"""Results folders read back: what reports need of a run, checked before anything is written."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from pydantic import BaseModel, ConfigDict, ValidationError, create_model

from tokentrim.compare.folder import TimingRow
from tokentrim.compare.gallery import SCHEMA, Gallery
from tokentrim.errors import ResultsError, complaint
from tokentrim.runs.figures import TYPES, Rows, figures_of

_ROWS: Final[dict[str, Rows]] = {"cells": "cells", "pooled": "cells", "overall": "means"}


def schema_of(rows: Rows) -> type[BaseModel]:
    """What every row of a kind must hold; whatever else is there travels along.

    What a pass records may be missing: an earlier version did not record all that this one does.
    """
    fields: dict[str, Any] = {
        figure.name: (
            TYPES[figure.kind] if figure.always else TYPES[figure.kind] | None,
            ... if figure.source == "rows" else None,
        )
        for figure in figures_of(rows)
    }
    return create_model(f"Row of {rows}", __config__=ConfigDict(extra="allow", strict=True), **fields)


class _SkippedRow(BaseModel):
    method: str
    model: str
    task: str
    budget_requested: float | None
    matched_by: str
    seed: int | None
    skipped: str


class _SummaryFile(BaseModel):
    command: str
    versions: dict[str, str]
    config_hash: str
    config: dict[str, Any]
    models: dict[str, dict[str, Any]]
    matched_by: dict[str, str]
    seeds: list[int]
    correction: str
    cells: list[dict[str, Any]]
    pooled: list[dict[str, Any]]
    overall: list[dict[str, Any]]
    timings: list[TimingRow]
    skipped: list[_SkippedRow]
    failures: int
    first_failure: str | None
    notes: list[str]


class _Image(BaseModel):
    src: str
    width: int
    height: int


class _Grid(BaseModel):
    planes: list[tuple[int, int, int, int, int]]
    runs: list[tuple[int, int, int]]


class _Line(BaseModel):
    method: str
    budget_requested: float | None
    seed: int | None
    boundary: int | None
    cells: int
    n_visual: int
    n_layers: int
    steps: int
    prefill: list[tuple[int, str]]
    evictions: list[tuple[str, list[tuple[int, str]]]]
    tokens: list[str]
    prediction: str
    score: float | None


class _Question(BaseModel):
    model: str
    task: str
    metric: str
    sample: str
    question: str
    answer: str
    images: str
    cells: list[_Grid]
    methods: list[_Line]


class _GalleryFile(BaseModel):
    images: dict[str, list[_Image]]
    questions: list[_Question]


@dataclass(frozen=True)
class PastRun:
    """What reports need of one results folder.

    Attributes:
        name: of the folder, made distinct from those of other runs.
        folder: where it lies.
        data: the content of ``summary.json``.
        gallery: the content of ``gallery.json``.
    """

    name: str
    folder: Path
    data: dict[str, Any]
    gallery: Gallery


def read_runs(folders: Sequence[Path]) -> list[PastRun]:
    """Read results folders.

    Raises:
        ResultsError: when one is not there, not finished, or not what tokentrim wrote.
    """
    runs: list[PastRun] = []
    for folder in folders:
        if any(folder.resolve() == run.folder.resolve() for run in runs):
            raise ResultsError(complaint("a results folder", "be named once", str(folder)))
        name, taken = folder.resolve().name, {run.name for run in runs}
        again = (f"{name} ({number})" for number in range(2, len(folders) + 2))
        distinct = name if name not in taken else next(found for found in again if found not in taken)
        runs.append(_read(folder, distinct))
    return runs


def _read(folder: Path, name: str) -> PastRun:
    if not folder.is_dir():
        raise ResultsError(
            complaint("a results folder", "be an existing folder", str(folder), "name what 'compare --out' wrote")
        )
    if not (folder / "summary.json").exists() and (folder / "cells").is_dir():
        hint = "the run was stopped: run the same 'tokentrim compare' again, which finishes it"
        raise ResultsError(complaint(f"the results folder {folder}", "hold a summary.json beside its cells", hint=hint))
    data, gallery = _json(folder / "summary.json"), _json(folder / "gallery.json")
    _check(folder / "summary.json", _SummaryFile, data)
    for part, rows in _ROWS.items():
        schema = schema_of(rows)
        for number, row in enumerate(data[part]):
            _check(folder / "summary.json", schema, row, f"{part}.{number}.")
            data[part][number] = {**{figure.name: figure.read(row.get) for figure in figures_of(rows)}, **row}
    if gallery.get("schema") != SCHEMA:
        raise ResultsError(
            complaint(f"the schema of {folder / 'gallery.json'}", f"be {SCHEMA}", gallery.get("schema"),
                      "write it anew: run the same 'tokentrim compare' again with this version")
        )  # fmt: skip
    _check(folder / "gallery.json", _GalleryFile, gallery)
    return PastRun(name, folder, data, gallery)


def _json(path: Path) -> dict[str, Any]:
    """The JSON object in a file."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as cause:
        hint = f"{cause}; name a folder that 'tokentrim compare' has finished"
        raise ResultsError(complaint(str(path), "be what tokentrim wrote", hint=hint)) from cause
    if not isinstance(found, dict):
        raise ResultsError(complaint(str(path), "hold a JSON object", found))
    return found


def _check(path: Path, schema: type[BaseModel], data: dict[str, Any], at: str = "") -> None:
    """Raise ResultsError unless the data is what reports read."""
    try:
        schema.model_validate(data)
    except ValidationError as cause:
        first = cause.errors()[0]
        where = at + ".".join(str(part) for part in first["loc"])
        hint = f"{where}: {first['msg']}; run the same 'tokentrim compare' again, which writes it anew"
        raise ResultsError(complaint(str(path), "be what this version of tokentrim writes", hint=hint)) from cause


KNOWN: Final = frozenset(_SummaryFile.model_fields)
"""Parts of a summary that reports know."""
