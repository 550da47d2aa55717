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
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

from tokentrim.compare.config import CompareConfig
from tokentrim.errors import ResultsError, complaint
from tokentrim.runs.cells import Cell
from tokentrim.runs.files import make_folder, reading, write_json, write_lines
from tokentrim.runs.results import CellResult

_CONFIG: Final = "config.json"


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
        with reading(file, "choose another --out"):
            before = json.loads(file.read_text(encoding="utf-8"))
            found, old = before["config_hash"], before["config"]
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
        if not path.exists():
            return None
        with reading(path, "remove the file and run again"):
            head, *samples = (json.loads(line) for line in path.read_text(encoding="utf-8").splitlines())
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
        if not path.exists():
            return None
        with reading(path, "remove the file and run again"):
            return json.loads(path.read_text(encoding="utf-8"))

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
