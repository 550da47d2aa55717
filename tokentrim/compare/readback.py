"""Results folders read back: what reports need of a run, checked before anything is written."""

from __future__ import annotations

import importlib
from collections.abc import Generator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final

from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model, field_validator, model_validator

from tokentrim.compare.folder import TimingRow
from tokentrim.compare.gallery import SCHEMA, Gallery, require_stored
from tokentrim.contracts.token_places import GridRecord
from tokentrim.errors import ResultsError, complaint
from tokentrim.runs.figures import TYPES, Rows, figures_of
from tokentrim.runs.files import read_json, reading
from tokentrim.runs.kept import KeptRecord

_STRICT: Final = ConfigDict(strict=True, extra="allow")
_FINISHED: Final = "name a folder that 'tokentrim compare' has finished"
_AGAIN: Final = "run the same 'tokentrim compare' again, which writes it anew"
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


_Float = Annotated[float, Field(strict=True)]
_Int = Annotated[int, Field(strict=True)]


class _SkippedRow(BaseModel):
    model_config = _STRICT

    method: str
    model: str
    task: str
    budget_requested: float | None
    matched_by: str
    seed: int | None
    skipped: str


class _Listed(BaseModel):
    model_config = _STRICT

    label: str


class _Asked(BaseModel):
    model_config = _STRICT

    task: str


class _ConfigPart(BaseModel):
    model_config = _STRICT

    split: str
    batch_size: int | str  # a report of several runs says here that they differ
    strategies: list[_Listed]
    tasks: list[_Asked] = []


class _SummaryFile(BaseModel):
    model_config = _STRICT

    command: str
    versions: dict[str, str]
    config_hash: str
    config: _ConfigPart
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
    model_config = _STRICT

    src: str
    width: int = Field(ge=1)
    height: int = Field(ge=1)
    name: str = ""

    @field_validator("src")
    @classmethod
    def _embedded(cls, value: str) -> str:
        """Nothing but a picture that is here, as gallery.stored writes it."""
        require_stored(value)
        return value


class _Line(KeptRecord):
    method: str
    budget_requested: _Float | None
    seed: _Int | None
    boundary: _Int | None
    cells: _Int = Field(ge=0)
    prediction: str
    score: _Float | None


class _Question(BaseModel):
    model_config = _STRICT

    model: str
    task: str
    metric: str
    sample: str
    question: str
    answer: str
    images: str
    cells: list[GridRecord] = Field(min_length=1)
    methods: list[_Line] = Field(min_length=1)


class _GalleryFile(BaseModel):
    images: dict[str, list[_Image]]
    questions: list[_Question]

    @model_validator(mode="after")
    def _whole(self) -> _GalleryFile:
        """What one part names is there in the other."""
        for question in self.questions:
            n_images = len(self.images.get(question.images, ()))
            for grid in question.cells:
                images = {image for image, *_ in grid.planes}
                if 0 not in images or max(images) >= n_images:
                    raise ValueError(
                        f"planes of {question.sample!r} must be of its {n_images} images, the first among them"
                    )
            for line in question.methods:
                places = question.cells[line.cells].n_tokens if line.cells < len(question.cells) else -1
                if line.n_visual > places:
                    raise ValueError(f"tokens of {line.method!r} on {question.sample!r} must each have a place")
        return self


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
    with reading(folder, _FINISHED):
        there, begun, ended = folder.is_dir(), (folder / "cells").is_dir(), (folder / "summary.json").exists()
    if not there:
        raise ResultsError(
            complaint("a results folder", "be an existing folder", str(folder), "name what 'compare --out' wrote")
        )
    if begun and not ended:
        hint = "the run was stopped: run the same 'tokentrim compare' again, which finishes it"
        raise ResultsError(complaint(f"the results folder {folder}", "hold a summary.json beside its cells", hint=hint))
    data, gallery = (read_json(folder / file, _FINISHED) for file in ("summary.json", "gallery.json"))
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
    run = PastRun(name, folder, data, gallery)
    with reading(folder, _AGAIN):
        _require_whole(run)
    return run


def _require_whole(run: PastRun) -> None:
    """Raise ValueError where a part of a run names what no other part has."""
    models, methods = run.data["models"], {row["method"] for row in run.data["cells"]}
    named = [row["model"] for part in (*_ROWS, "timings", "skipped") for row in run.data[part]]
    unknown = next((model for model in named if model not in models), None)
    if unknown is not None:
        raise ValueError(f"the model {unknown!r} of a row must be listed")
    drawn = [line["method"] for question in run.gallery["questions"] for line in question["methods"]]
    unknown = next((method for method in drawn if method not in methods), None)
    if unknown is not None:
        raise ValueError(f"the method {unknown!r} of the gallery must have a cell")


@contextmanager
def rendering(runs: Sequence[PastRun]) -> Generator[None]:
    """Name the folder whose numbers no report can be made of, whatever making it raised."""
    more: list[type[Exception]] = []
    with suppress(ImportError):  # only a page needs it
        more.append(importlib.import_module("jinja2").TemplateError)
    with reading(runs[0].folder, _AGAIN, *more):
        yield


def _check(path: Path, schema: type[BaseModel], data: dict[str, Any], at: str = "") -> None:
    """Raise ResultsError unless the data is what reports read."""
    try:
        schema.model_validate(data)
    except ValidationError as cause:
        first = cause.errors()[0]
        where = at + ".".join(str(part) for part in first["loc"])
        hint = f"{where}: {first['msg']}; {_AGAIN}"
        raise ResultsError(complaint(str(path), "be what this version of tokentrim writes", hint=hint)) from cause


KNOWN: Final = frozenset(_SummaryFile.model_fields)
"""Parts of a summary that reports know."""
