"""The files of a results folder. Each appears whole or not at all, so a run may be killed at any moment.

DIR/config.json          what was asked, with its hash
DIR/cells/<key>.jsonl    one finished cell: a line about the cell, then one line per question
DIR/timings/<key>.json   one method at one budget, timed beside the unpruned model
DIR/knobs/<key>.json     one knob that was solved by measuring time
DIR/results.jsonl        all questions of all cells, rebuilt from the cells
DIR/summary.json         one object per cell, rebuilt from the cells
DIR/gallery.json         pictures, and what every method kept of them, rebuilt from the cells
DIR/report.html, report.md, summary.csv, *.png    the same for reading
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

from pydantic import BaseModel, ConfigDict

from tokentrim.compare.config import CompareConfig
from tokentrim.errors import DataError, ResultsError, complaint, reason_of
from tokentrim.runs.cells import Cell
from tokentrim.runs.files import (
    clear,
    make_folder,
    plain_lines,
    read_json,
    read_lines,
    reading,
    write_json,
    write_lines,
)
from tokentrim.runs.results import CellResult, failed, verified

_CONFIG: Final = "config.json"


_AGAIN: Final = "remove the file and run again"
_STRICT: Final = ConfigDict(strict=True, extra="allow")


class SpreadRecord(BaseModel):
    """A median with its quartiles."""

    model_config = _STRICT

    median: float
    low: float
    high: float


class TimingRow(BaseModel):
    """What is read of one method's row of the timing pass."""

    model_config = _STRICT

    model: str
    method: str
    budget_requested: float | None
    matched_by: str
    repeats: int
    questions: int
    new_tokens: int
    prefill_spread: SpreadRecord
    prefill_ratio_spread: SpreadRecord | None
    selection_spread: SpreadRecord
    decode_spread: SpreadRecord
    decode_ratio_spread: SpreadRecord | None
    total_spread: SpreadRecord
    total_ratio_spread: SpreadRecord | None
    peak_bytes: float | None
    peak_memory_ratio: float | None


class KnobRow(BaseModel):
    """What is read of one knob that was solved by measuring."""

    model_config = _STRICT

    strategy: dict[str, Any] | None
    reason: str
    about: dict[str, Any] | None


_KINDS: Final[dict[str, type[BaseModel]]] = {"timings": TimingRow, "knobs": KnobRow}
"""Folders of what is measured, with what each file in them holds."""


class ResultsFolder:
    """A results folder: opened for one configuration, refused for any other."""

    def __init__(self, path: Path) -> None:
        self.path: Final = path
        self.cells: Final = path / "cells"

    def open(self, config: CompareConfig, about: dict[str, Any]) -> None:
        """Make the folder ready for a run of ``config``.

        Raises:
            ResultsError: when it cannot be written, or holds results of another configuration.
        """
        make_folder(self.cells, "the results folder")
        for folder in (self.path, *(self.path / kind for kind in _KINDS)):
            clear(folder)
        file = self.path / _CONFIG
        if file.exists():
            self._require_same(file, config)
        elif any(self.cells.iterdir()):
            raise ResultsError(
                complaint(f"the results folder {self.path}", f"hold {_CONFIG} beside its cells",
                          hint="choose another --out, or empty the folder")
            )  # fmt: skip
        else:
            write_json(file, {"config_hash": config.hash, "config": config.to_dict(), **about})

    def _require_same(self, file: Path, config: CompareConfig) -> None:
        """Raise ResultsError when the folder's configuration is not this one; says what differs."""
        data, new = read_json(file, "choose another --out"), config.to_dict()
        with reading(file, "choose another --out"):
            found, old = str(data["config_hash"]), dict(data["config"])
            differing = ", ".join(sorted(key for key in {*old, *new} if old.get(key) != new.get(key)))
        if found != config.hash:
            raise ResultsError(
                complaint(f"the results folder {self.path}", f"be of this configuration ({config.hash})", found,
                          f"It holds results of another one, which differs in: {differing}. Choose another --out, or "
                          f"remove the folder")
            )  # fmt: skip

    def _file(self, cell: Cell) -> Path:
        return self.cells / f"{cell.key}.jsonl"

    def read(self, cell: Cell) -> CellResult | None:
        """A cell's finished result, or None where there is none yet.

        Raises:
            ResultsError: when its file is not what tokentrim wrote for this cell.
        """
        path = self._file(cell)
        with reading(path, _AGAIN, DataError):
            return verified(cell, read_lines(path, _AGAIN)) if path.exists() else None

    def write(self, cell: Cell, result: CellResult) -> CellResult:
        """Store a finished cell; one that no file may hold is stored as failed.

        Returns:
            What was stored, as it will be read.
        """
        try:
            stored = verified(cell, plain_lines([result.head, *result.samples]))
        except (ValueError, TypeError, LookupError, AttributeError, RecursionError, DataError) as cause:
            stored = failed(cell, f"what it gave cannot be stored: {reason_of(cause)}")
        write_lines(self._file(cell), [stored.head, *stored.samples])
        return stored

    def measured(self, kind: str, key: str) -> dict[str, Any] | None:
        """What was measured under ``key``, or None where nothing was yet.

        Raises:
            ResultsError: when its file is not what tokentrim wrote under this key.
        """
        path = self.path / kind / f"{key}.json"
        with reading(path, _AGAIN):
            if not path.exists():
                return None
            data = read_json(path, _AGAIN)
            if data.pop("key") != key:
                raise ValueError("it is of something else that was measured")
            _KINDS[kind].model_validate(data)
        return data

    def keep(self, kind: str, key: str, data: dict[str, Any] | None) -> None:
        """Store what was measured, so that nobody measures it again."""
        if data is not None:
            folder = self.path / kind
            make_folder(folder, "the results folder")
            write_json(folder / f"{key}.json", {"key": key, **data})

    def write_results(self, results: Iterable[CellResult]) -> Path:
        """Rebuild ``results.jsonl``."""
        path = self.path / "results.jsonl"
        write_lines(path, (sample for result in results for sample in result.samples))
        return path
