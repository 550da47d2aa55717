"""The summary of a comparison: one row per cell with its score, its interval, its tests and its costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

from tokentrim.compare import stats
from tokentrim.compare.config import Correction
from tokentrim.compare.index import Index
from tokentrim.compare.rows import cell_row, overall_rows, set_units
from tokentrim.drawing.notebook import table
from tokentrim.errors import ConfigError, UnsupportedError, complaint
from tokentrim.runs.cells import CONTROL, REFERENCE, TEXT_ONLY, Cell
from tokentrim.runs.figures import TIMED, Row, Rows, figures_of
from tokentrim.runs.results import CellResult
from tokentrim.runs.specs import DOWNSCALE

if TYPE_CHECKING:
    from pandas import DataFrame
    from rich.table import Table

_KINDS: Final[dict[str, Rows]] = {"cells": "cells", "overall": "means"}
_MET: Final = 0.02  # a budget is met when what was realised is this near
_CORRECTIONS: Final = {"holm": "Holm", "bonferroni": "Bonferroni", "fdr_bh": "Benjamini and Hochberg"}


@dataclass(frozen=True)
class Summary:
    """What a comparison found.

    Attributes:
        folder: the results folder.
        data: the content of ``summary.json``.
        files: what was written, by name.
    """

    folder: Path
    data: dict[str, Any]
    files: dict[str, Path] = field(default_factory=dict[str, Path])

    @property
    def cells(self) -> list[Row]:
        """One row per cell."""
        return self.data["cells"]

    @property
    def overall(self) -> list[Row]:
        """One row per method, budget and kind of answer: means over tasks."""
        return self.data["overall"]

    @classmethod
    def read(cls, folder: str | Path) -> Summary:
        """What a finished comparison left in its folder.

        Raises:
            ResultsError: when there is none, or it is not what tokentrim wrote.
        """
        from tokentrim.compare.readback import read_runs  # its checks are of whole files

        found = read_runs([Path(folder)])[0]
        return cls(found.folder, found.data)

    def frame(self, rows: Literal["cells", "overall"] = "cells") -> DataFrame:
        """The rows as a pandas DataFrame, a column per figure.

        Args:
            rows: one per cell, or per method, budget and kind of answer: means over tasks.

        Raises:
            ConfigError: for other rows.
            UnsupportedError: when pandas is not installed.
        """
        if rows not in ("cells", "overall"):
            raise ConfigError(complaint("the rows of a frame", "be cells or overall", rows))
        try:
            import pandas as pd
        except ImportError as cause:
            raise UnsupportedError(
                complaint("results as a DataFrame", "find pandas", hint="pip install 'tokentrim-vlm[report]'")
            ) from cause
        return pd.DataFrame(self.data[rows], columns=[figure.name for figure in figures_of(_KINDS[rows])])

    def _repr_html_(self) -> str:
        """In a notebook: every model's overall rows, as in ``report.md``."""
        from tokentrim.compare.tables import overall_grid

        return "".join(table(*overall_grid(self.data, model), model) for model in self.data["models"])

    @property
    def failures(self) -> int:
        """Questions and cells that failed."""
        return self.data["failures"]

    @property
    def first_cause(self) -> str | None:
        """Why the first of them failed."""
        return self.data["first_failure"]

    def to_dict(self) -> dict[str, Any]:
        """The content of ``summary.json``."""
        return self.data

    def table(self) -> Table:
        """The overall rows for a terminal."""
        from tokentrim.compare.tables import overall_table

        return overall_table(self.data)


def build(
    cells: Sequence[Cell],
    results: Mapping[str, CellResult],
    about: Mapping[str, Any],
    timings: Sequence[Mapping[str, Any]] = (),
    correction: Correction = "holm",
) -> dict[str, Any]:
    """The content of ``summary.json``.

    Args:
        cells: all cells of the comparison.
        results: finished cells by key.
        about: command, versions, and what else the caller knows of the run.
        timings: rows of the timing pass.
        correction: of p values for the number of comparisons.
    """
    index = Index(cells, results)
    times = {(row["model"], row["method"], row["budget_requested"]): row for row in timings}
    rows = [cell_row([cell], index, times) for cell in index.cells]
    run = [row for row in rows if row["skipped"] is None]
    repeated = [listed for listed in index.variants() if len(listed) > 1]
    pooled = [cell_row(listed, index, times) for listed in repeated if index.head(listed[0], "skipped") is None]
    overall = overall_rows(index, times)
    set_units([*rows, *pooled, *overall])
    several = {cell.key for listed in repeated for cell in listed}
    correct([*(row for row in run if row["key"] not in several), *pooled], correction)
    correct(overall, correction)
    causes = [cause for cell in index.cells for cause in index.result(cell).failures]
    return {
        **about,
        "matched_by": {cell.method: cell.match for cell in cells},
        "seeds": sorted({cell.seed for cell in cells if cell.seed is not None}),
        "correction": correction,
        "cells": run,
        "pooled": pooled,
        "overall": overall,
        "timings": [{**row, **{figure.name: figure.read(row.get) for figure in TIMED}} for row in timings],
        "skipped": [
            {
                name: row[name]
                for name in ("method", "model", "task", "budget_requested", "matched_by", "seed", "skipped")
            }
            for row in rows
            if row["skipped"] is not None
        ],
        "failures": len(causes),
        "first_failure": causes[0] if causes else None,
        "notes": _notes(index, overall, correction),
    }


def correct(rows: Sequence[Row], method: Correction) -> None:
    """Write the corrected p values into the rows of one table.

    All tests of one column of one model's table are one family: every method, budget and task in it. Text-only rows
    claim nothing and are in none.
    """
    for column in ("p_vs_none", "p_vs_random"):
        for model in dict.fromkeys(row["model"] for row in rows):
            family = [
                row for row in rows if row["model"] == model and row["method"] != TEXT_ONLY and row[column] is not None
            ]
            values = stats.adjusted([row[column] for row in family], method)
            for row, value in zip(family, values, strict=True):
                row[f"{column}_adjusted"] = value


def _unplaced(pictures: Mapping[str, Mapping[str, Any]] | None) -> list[str]:
    """Why it is not known where in the pictures tokens lie, of each recorded question that has some."""
    return [record["nowhere"] for record in (pictures or {}).values() if record.get("nowhere") and record["n_visual"]]


def _notes(index: Index, overall: Sequence[Row], correction: Correction) -> list[str]:
    """What a reader of the numbers should know."""
    cells = index.cells
    notes = [
        "p values are two-sided, of paired tests; p_vs_none and p_vs_random are not corrected"
        + (
            ""
            if correction == "none"
            else f", the adjusted ones are, after {_CORRECTIONS[correction]}, for all tests of their column and model"
        ),
        "times of cells are of one pass over batches, per question; for comparing times, read the timings",
    ]
    if any(not index.result(cell).head.get("timed_alone", True) for cell in cells):
        notes.append("times of cells are left out where other cells or processes ran beside them")
    if all(cell.method != CONTROL for cell in cells):
        notes.append("p_vs_random is empty, because the comparison does not run 'random'")
    if all(cell.control != DOWNSCALE for cell in cells):
        notes.append("there are no easy and hard questions, because the comparison does not run 'downscale'")
    if any(row["form"] == "same tokens" for row in overall):
        notes.append(
            "downscale: this family has one resolution, so pictures are shrunk and blown up again: the information of "
            "the budget's tokens, at the cost of all of them"
        )
    for match, which in (("kv_ratio", "visual KV entries"), ("kv_read_ratio", "visual KV entries that attention sees")):
        by_cache = sorted({cell.method for cell in cells if cell.match == match})
        if by_cache:
            notes.append(
                f"{', '.join(by_cache)}: the budget is the share of {which}, mean over decode steps, planned for "
                "answers of typical length; what was realised stands beside it"
            )
    missed = dict.fromkeys(
        f"{row['method']} at {row['budget_requested']:.0%} ({row['budget_realised']:.1%})"
        for row in overall
        if row["budget_deviation"] is not None and abs(row["budget_deviation"]) > _MET
    )
    if missed:
        notes.append(f"budgets missed by more than {_MET:.0%} of the unpruned run: {', '.join(missed)}")
    whole = sorted({cell.task.task for cell in cells if not index.is_mean(cell)})
    if whole:
        notes.append(f"{', '.join(whole)}: scored by the task's own aggregation, so without intervals and tests")
    nowhere = {(cell.model.name, why): None for cell in cells for why in _unplaced(index.head(cell, "pictures"))}
    notes += [f"no picture shows what was kept on {model}: {why}" for model, why in nowhere]
    for cell in cells:
        scores = [line["score"] for line in index.result(cell).samples]
        if cell.method == REFERENCE and scores and all(score == 0 for score in scores):
            notes.append(
                f"unpruned, {cell.model.name} answers nothing of {cell.task.task} right: what pruning loses there "
                "cannot be seen"
            )
    skipped = sorted({cell.method for cell in cells if index.head(cell, "skipped")})
    if skipped:
        notes.append(f"{', '.join(skipped)}: not run on some tasks or at some budgets; see what was not reachable")
    return notes
