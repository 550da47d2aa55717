"""The summary of a comparison: one row per cell with its score, its interval, its tests and its costs."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from tokentrim.compare import stats
from tokentrim.compare.cells import CONTROL, REFERENCE, TEXT_ONLY, Cell
from tokentrim.compare.results import CellResult
from tokentrim.plugins import registry

if TYPE_CHECKING:
    from rich.table import Table

_COSTS: Final = (
    "layer_mean_tokens", "layer_mean_ratio", "flops_ratio", "flops_ratio_field", "kv_peak_ratio", "kv_mean_ratio",
    "kv_end_ratio", "kv_total_mean_ratio", "prefill_seconds", "decode_seconds_per_token", "selection_seconds",
    "pruning_events",
)  # fmt: skip
_IDENTITY: Final = ("method", "model", "task", "budget_requested", "matched_by", "seed", "skipped")
_SAME: Final = 1e-9  # between a task's own score and the mean of its answers' scores
_MEANS: Final = tuple(name for name in _COSTS if name != "pruning_events")
Row = dict[str, Any]


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

        return overall_table(self)


def build(cells: Sequence[Cell], results: Mapping[str, CellResult], about: Mapping[str, Any]) -> dict[str, Any]:
    """The content of ``summary.json``.

    Args:
        cells: all cells of the comparison.
        results: finished cells by key.
        about: command, versions, and what else the caller knows of the run.
    """
    index = {_place(cell): results[cell.key] for cell in cells if cell.key in results}
    rows = [_row(cell, results[cell.key], index) for cell in cells if cell.key in results]
    overall = _overall(cells, index)
    _set_units([*rows, *overall])
    causes = [cause for cell in cells if cell.key in results for cause in results[cell.key].failures]
    return {
        **about,
        "matched_by": {cell.method: cell.match for cell in cells},
        "seeds": sorted({cell.seed for cell in cells if cell.seed is not None}),
        "cells": [row for row in rows if row["skipped"] is None],
        "overall": overall,
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
        "notes": _notes(cells, results),
    }


Place = tuple[str, str, str, float | None, int | None, int | None]


def _place(cell: Cell) -> Place:
    """What tells a cell from all others of its comparison."""
    boundary = cell.boundary if cell.method == TEXT_ONLY else None
    return cell.model.name, cell.task.task, cell.method, cell.budget, cell.seed, boundary


def _reference(cell: Cell) -> Place:
    return cell.model.name, cell.task.task, REFERENCE, None, None, None


def _control(cell: Cell, index: Mapping[Place, CellResult]) -> CellResult | None:
    """Random selection at the cell's own budget, with the first seed."""
    seeds = sorted(place[4] or 0 for place in index if place[2] == CONTROL)
    for seed in (*seeds[:1], None):
        found = index.get((cell.model.name, cell.task.task, CONTROL, cell.budget, seed, None))
        if found is not None:
            return found
    return None


def _beside(cell: Cell, index: Mapping[Place, CellResult]) -> CellResult | None:
    """The run that has no visual token from the cell's first boundary on."""
    return index.get((cell.model.name, cell.task.task, TEXT_ONLY, None, None, cell.boundary))


def _row(cell: Cell, result: CellResult, index: Mapping[Place, CellResult]) -> Row:
    """One cell's row."""
    metric = _metric(cell)
    score = _estimate(result, metric)
    none, random, blind = index.get(_reference(cell)), _control(cell, index), _beside(cell, index)
    blind_score = None if blind is None else _estimate(blind, metric).mean
    return {
        "method": cell.method,
        "strategy": result.head.get("strategy"),
        "task": cell.task.task,
        "metric": _metric_name(cell),
        "model": cell.model.name,
        "n": _answered(result),
        "budget_requested": cell.budget,
        "matched_by": cell.match,
        "seed": cell.seed,
        "boundary": cell.boundary,
        **{name: result.head.get(name) for name in _COSTS},
        "accuracy": _number(score.mean),
        "accuracy_low": _number(score.low),
        "accuracy_high": _number(score.high),
        "text_only_accuracy": _number(blind_score),
        "p_vs_none": None if cell.method == REFERENCE else _p(result, none, metric),
        "p_vs_random": None if cell.method in (CONTROL, REFERENCE) else _p(result, random, metric),
        "agreement": _agreement(result, none),
        "failures": len(result.failures),
        "key": cell.key,
        "skipped": result.head.get("skipped"),
    }


def _metric(cell: Cell) -> stats.Metric:
    return registry("task").get(cell.task.task).metric


def _metric_name(cell: Cell) -> str:
    """What tables call the metric: the task's own name for it, where it has one."""
    task = registry("task").get(cell.task.task)
    return task.metric_name or task.metric


def _answered(result: CellResult) -> int:
    """Questions that have an answer."""
    return sum(sample["failure"] is None for sample in result.samples)


def _scores(result: CellResult) -> dict[str, float]:
    """Scores of the answered questions, by question, where single answers have one."""
    return {
        sample["sample"]: sample["score"]
        for sample in result.samples
        if sample["failure"] is None and sample["score"] is not None
    }


def _estimate(result: CellResult, metric: stats.Metric) -> stats.Estimate:
    """A cell's score with its interval; without one where the task scores all answers together in its own way."""
    if _is_mean(result):
        return stats.estimate(list(_scores(result).values()), metric)
    return stats.Estimate(result.head["aggregate"], math.nan, math.nan)


def _is_mean(result: CellResult) -> bool:
    """Whether a cell's score is the mean of its answers' scores, so that intervals and paired tests say of it."""
    aggregate, scores = result.head.get("aggregate"), list(_scores(result).values())
    if aggregate is None:
        return True
    return bool(scores) and math.isclose(aggregate, math.fsum(scores) / len(scores), abs_tol=_SAME)


def _set_units(rows: Sequence[Row]) -> None:
    """Say of every row whether its score is a share, printed in per cent, or a number on the metric's own scale."""
    beyond = {row["metric"] for row in rows if (row["accuracy"] or 0.0) > 1.0}
    for row in rows:
        row["unit"] = "" if row["metric"] in beyond else "%"


def _paired(result: CellResult, other: CellResult) -> tuple[list[float], list[float]]:
    """Scores of the questions that both answered."""
    mine, theirs = _scores(result), _scores(other)
    both = [question for question in mine if question in theirs]
    return [mine[question] for question in both], [theirs[question] for question in both]


def _p(result: CellResult, other: CellResult | None, metric: stats.Metric) -> float | None:
    """p value of the paired test against another cell; None where there is nothing to compare with."""
    if other is None or other is result or not _scores(result) or not _scores(other):
        return None
    if not (_is_mean(result) and _is_mean(other)):
        return None
    return stats.paired_p(*_paired(result, other), metric)


def _agreement(result: CellResult, other: CellResult | None) -> float | None:
    """Share of answers that equal the unpruned run's."""
    if other is None:
        return None
    theirs = {sample["sample"]: sample["prediction"] for sample in other.samples if sample["failure"] is None}
    mine = [s for s in result.samples if s["failure"] is None and s["sample"] in theirs]
    return _number(stats.agreement([s["prediction"] for s in mine], [theirs[s["sample"]] for s in mine]))


def _overall(cells: Sequence[Cell], index: Mapping[Place, CellResult]) -> list[Row]:
    """Means over the tasks of one metric: every task counts the same, whatever its number of questions."""
    groups: dict[tuple[Any, ...], dict[str, list[Cell]]] = {}
    for cell in cells:
        model, _, *variant = _place(cell)
        found = index.get(_place(cell))
        # A variant that was skipped on one task keeps its place in the order of the others.
        members = groups.setdefault((model, *variant), {})
        if found is not None and _answered(found):
            members.setdefault(_metric_name(cell), []).append(cell)
    return [_overall_row(listed, index) for members in groups.values() for listed in members.values()]


def _overall_row(members: Sequence[Cell], index: Mapping[Place, CellResult]) -> Row:
    """One row of means."""
    first, metric = members[0], _metric(members[0])
    results = [index[_place(cell)] for cell in members]
    score = _together(results, metric)
    blind = [found for cell in members if (found := _beside(cell, index)) is not None and _answered(found)]
    blind_score = _together(blind, metric).mean if len(blind) == len(members) else None
    return {
        "method": first.method,
        "model": first.model.name,
        "metric": _metric_name(first),
        "tasks": [cell.task.task for cell in members],
        "n": sum(_answered(result) for result in results),
        "budget_requested": first.budget,
        "matched_by": first.match,
        "seed": first.seed,
        "boundary": first.boundary,
        **{name: _mean(result.head.get(name) for result in results) for name in _MEANS},
        "accuracy": _number(score.mean),
        "accuracy_low": _number(score.low),
        "accuracy_high": _number(score.high),
        "text_only_accuracy": _number(blind_score),
        "p_vs_none": None if first.method == REFERENCE else _pooled(members, index, lambda c: index.get(_reference(c))),
        "p_vs_random": None
        if first.method in (CONTROL, REFERENCE)
        else _pooled(members, index, lambda cell: _control(cell, index)),
        "agreement": _mean(_agreement(index[_place(cell)], index.get(_reference(cell))) for cell in members),
        "failures": sum(len(result.failures) for result in results),
    }


def _together(results: Sequence[CellResult], metric: stats.Metric) -> stats.Estimate:
    """Mean of several tasks' scores; with an interval where every one is a mean of its answers' scores."""
    if not all(_is_mean(result) for result in results):
        means = [_estimate(result, metric).mean for result in results]
        return stats.Estimate(sum(means) / len(means), math.nan, math.nan)
    return stats.bootstrap([list(_scores(result).values()) for result in results])


def _pooled(
    members: Sequence[Cell], index: Mapping[Place, CellResult], other: Callable[[Cell], CellResult | None]
) -> float | None:
    """p value of the sign-flip test over the questions of several tasks together."""
    mine: list[float] = []
    theirs: list[float] = []
    for cell in members:
        rival = other(cell)
        if rival is None or not (_is_mean(rival) and _is_mean(index[_place(cell)])):
            return None
        pair = _paired(index[_place(cell)], rival)
        mine += pair[0]
        theirs += pair[1]
    return stats.sign_flip(mine, theirs) if mine else None


def _notes(cells: Sequence[Cell], results: Mapping[str, CellResult]) -> list[str]:
    """What a reader of the numbers should know."""
    notes = [
        "p values are two-sided, of paired tests, and not corrected for the number of comparisons",
        "times are of one pass over batches, divided by the questions of the batch: compare them within this run only",
    ]
    if all(cell.method != CONTROL for cell in cells):
        notes.append("p_vs_random is empty, because the comparison does not run 'random'")
    by_cache = sorted({cell.method for cell in cells if cell.match == "kv_ratio"})
    if by_cache:
        notes.append(
            f"{', '.join(by_cache)}: the budget is the share of visual KV entries, mean over decode steps, planned for "
            "answers of typical length; what was realised stands beside it"
        )
    whole = sorted({cell.task.task for cell in cells if cell.key in results and not _is_mean(results[cell.key])})
    if whole:
        notes.append(f"{', '.join(whole)}: scored by the task's own aggregation, so without intervals and tests")
    skipped = sorted({cell.method for cell in cells if cell.key in results and results[cell.key].head.get("skipped")})
    if skipped:
        notes.append(f"{', '.join(skipped)}: some budgets cannot be reached on some tasks; see 'skipped'")
    return notes


def _mean(values: Any) -> float | None:
    """Mean of the numbers among ``values``."""
    numbers = [float(value) for value in values if value is not None]
    return sum(numbers) / len(numbers) if numbers else None


def _number(value: float | None) -> float | None:
    """A number as JSON can hold it: NaN becomes null."""
    return None if value is None or math.isnan(value) else value
