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

import json
import os
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from tokentrim.compare.cells import Cell
from tokentrim.compare.config import CompareConfig
from tokentrim.compare.figures import CLOCKED
from tokentrim.errors import ResultsError, complaint

_CONFIG: Final = "config.json"


@dataclass(frozen=True)
class CellResult:
    """What one cell's file holds.

    Attributes:
        head: the cell's identity and what it cost.
        samples: one record per question.
    """

    head: dict[str, Any]
    samples: list[dict[str, Any]]

    @property
    def failures(self) -> list[str]:
        """Causes of failure, of questions first and then of the cell as a whole."""
        causes = [sample["failure"] for sample in self.samples if sample["failure"]]
        return causes + ([self.head["failure"]] if self.head["failure"] else [])

    def cost(self, name: str) -> Any:
        """A cost of the cell; None for a time that was taken while other cells ran beside it."""
        return None if name in CLOCKED and not self.head.get("timed_alone", True) else self.head.get(name)


def failed(cell: Cell, cause: str) -> CellResult:
    """The result of a cell that gave none: it counts as one failure, and its questions have no answer."""
    about = {"key": cell.key, **cell.about(), "boundary": cell.boundary, "skipped": None}
    strategy = cell.strategy.as_dict()
    return CellResult({**about, "failure": f"{cell.where}: {cause}", "strategy": strategy, "strategies": []}, [])


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
        try:
            self.cells.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.cells):
                pass
        except OSError as cause:
            raise ResultsError(
                complaint(f"the results folder {self.path}", "be writable", hint=f"{cause}; choose another --out")
            ) from cause
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
        try:
            before = json.loads(file.read_text(encoding="utf-8"))
            found, old = before["config_hash"], before["config"]
        except (OSError, ValueError, KeyError, TypeError) as cause:
            raise ResultsError(
                complaint(f"{file}", "be what tokentrim wrote there", hint=f"{cause!r}; choose another --out")
            ) from cause
        if found != config.hash:
            new = config.to_dict()
            differing = ", ".join(sorted(key for key in {*old, *new} if old.get(key) != new.get(key)))
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
            ResultsError: when its file is not what tokentrim wrote.
        """
        path = self._file(cell)
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except FileNotFoundError:
            return None
        try:
            head, *samples = (json.loads(line) for line in lines)
        except ValueError as cause:
            raise ResultsError(
                complaint(f"{path}", "be what tokentrim wrote there", hint=f"{cause}; remove the file and run again")
            ) from cause
        return CellResult(head, samples)

    def write(self, cell: Cell, result: CellResult) -> None:
        """Store a finished cell."""
        write_lines(self._file(cell), [result.head, *result.samples])

    def measured(self, kind: str, key: str) -> dict[str, Any] | None:
        """What was measured under ``key``, or None where nothing was yet.

        Raises:
            ResultsError: when its file is not what tokentrim wrote.
        """
        path = self.path / kind / f"{key}.json"
        try:
            return json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except ValueError as cause:
            raise ResultsError(
                complaint(f"{path}", "be what tokentrim wrote there", hint=f"{cause}; remove the file and run again")
            ) from cause

    def keep(self, kind: str, key: str, data: dict[str, Any] | None) -> None:
        """Store what was measured, so that nobody measures it again."""
        if data is not None:
            path = self.path / kind / f"{key}.json"
            path.parent.mkdir(exist_ok=True)
            write_json(path, data)

    def write_results(self, results: Iterable[CellResult]) -> Path:
        """Rebuild ``results.jsonl``."""
        path = self.path / "results.jsonl"
        write_lines(path, (sample for result in results for sample in result.samples))
        return path


def write_lines(path: Path, lines: Iterable[dict[str, Any]]) -> None:
    """Write JSON lines, whole or not at all."""
    text = "".join(json.dumps(line, ensure_ascii=False, allow_nan=False) + "\n" for line in lines)
    write_atomic(path, lambda part: part.write_text(text, encoding="utf-8"))


def write_json(path: Path, data: dict[str, Any]) -> None:
    """Write one JSON object, whole or not at all."""
    text = json.dumps(data, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    write_atomic(path, lambda part: part.write_text(text, encoding="utf-8"))


def write_atomic(path: Path, write: Callable[[Path], object]) -> None:
    """Let ``write`` fill a file beside ``path``, then put it in place; a reader sees the old or the new one.

    Raises:
        ResultsError: when the file cannot be written.
    """
    # The process number keeps two runs in one folder from writing the same temporary file.
    part = path.with_name(f".{path.name}.{os.getpid()}.part{path.suffix}")
    try:
        write(part)
        with part.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(part, path)
    except OSError as cause:
        raise ResultsError(complaint(f"{path}", "be writable", hint=f"{cause}; free space, then run again")) from cause
    finally:
        part.unlink(missing_ok=True)
