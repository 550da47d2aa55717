"""The rows of a summary: what one cell scored and cost, and means over tasks and seeds."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import chain
from typing import Any, Final

from tokentrim.compare import stats
from tokentrim.compare.index import Index, Scores, matrix, mean_scores, variant_of
from tokentrim.compare.split import Split, split
from tokentrim.plugins.loader import registry
from tokentrim.runs.cells import REFERENCE, TEXT_ONLY, Cell
from tokentrim.runs.figures import FIGURES, Figure, Row, Rows, figures_of
from tokentrim.runs.specs import MEASURED

_REALISED: Final = {
    "layer_mean_ratio": "layer_mean_ratio",
    "kv_ratio": "kv_mean_ratio",
    "kv_read_ratio": "kv_read_ratio",
    "flops_ratio": "flops_ratio",
    MEASURED: "prefill_time_ratio",
}
Times = Mapping[tuple[Any, ...], Mapping[str, Any]]
"""Timings by model, method and budget."""
Rival = Callable[[Cell], list[Cell]]


def metric_of(cell: Cell) -> stats.Metric:
    """How a cell's task is scored."""
    return registry("task").get(cell.task.task).metric


def metric_name(cell: Cell) -> str:
    """What tables call the metric: the task's own name for it, where it has one."""
    task = registry("task").get(cell.task.task)
    return task.metric_name or task.metric


def cell_row(members: Sequence[Cell], index: Index, times: Times) -> Row:
    """The row of one cell, or of one cell with all its seeds."""
    metric = metric_of(members[0])
    reference, beside = (_paired(members, index, rival) for rival in (index.reference, index.random))
    own = {
        "task": members[0].task.task,
        "key": members[0].key,
        **_scored([members], index, metric),
        "p_vs_none": None if reference is None else stats.paired_p(*reference, metric),
        "p_vs_random": None if beside is None else stats.paired_p(*beside, metric),
        "gain_vs_random": _gain(beside),
    }
    return _row("cells", own, [members], index, times)


def set_units(rows: Sequence[Row]) -> None:
    """Say of every row whether its score is a share, printed in per cent, or a number on the metric's own scale."""
    beyond = {row["metric"] for row in rows if (row["accuracy"] or 0.0) > 1.0}
    for row in rows:
        row["unit"] = "" if row["metric"] in beyond else "%"


def _estimate(tasks: Sequence[Sequence[Cell]], index: Index, metric: stats.Metric) -> stats.Estimate:
    """Mean over tasks, each with its seeds, of their scores.

    Without an interval where a task scores all answers together in its own way.
    """
    if not all(index.is_mean(cell) for listed in tasks for cell in listed):
        means = [mean(_score(cell, index) for cell in listed) for listed in tasks]
        return stats.Estimate(mean(means) or 0.0, math.nan, math.nan)
    # A seed that failed on one task has no draw in common with the others: only whole seeds can be resampled.
    seeds = min(len(listed) for listed in tasks)
    scores = [[index.scores(cell) for cell in listed[:seeds]] for listed in tasks]
    grids = [matrix(listed, list(mean_scores(listed))) for listed in scores]
    if any(not grid.size for grid in grids):
        return stats.Estimate(math.nan, math.nan, math.nan)
    return stats.seeds_estimate(grids[0], metric) if len(grids) == 1 else stats.crossed(grids)


def _score(cell: Cell, index: Index) -> float | None:
    """A cell's score: its task's own, or the mean of its answers' scores."""
    aggregate = index.head(cell, "aggregate")
    return mean(index.scores(cell).values()) if aggregate is None else aggregate


def overall_rows(index: Index, times: Times) -> list[Row]:
    """Means over the tasks of one metric and over seeds: every task counts the same, whatever its questions."""
    groups: dict[tuple[Any, ...], dict[str, list[list[Cell]]]] = {}
    for listed in index.variants():
        cell = listed[0]
        model, _, *variant = variant_of(cell)
        # A variant that was skipped on one task keeps its place in the order of the others.
        members = groups.setdefault((model, *variant), {})
        answered = [other for other in listed if index.answered(other)]
        if answered:
            members.setdefault(metric_name(cell), []).append(answered)
    metrics = {(cell.model.name, cell.task.task): metric_name(cell) for cell in index.cells}
    asked = Counter((model, metric) for (model, _), metric in metrics.items())
    return [
        _overall_row(tasks, index, times)
        for (model, *_), found in groups.items()
        for metric, tasks in found.items()
        # A boundary that is beside some tasks only has no mean that compares with others.
        if tasks[0][0].method != TEXT_ONLY or len(tasks) == asked[model, metric]
    ]


def _overall_row(tasks: Sequence[Sequence[Cell]], index: Index, times: Times) -> Row:
    """One row of means over tasks of one metric, each with the seeds of one method at one budget."""
    reference, beside = (_together(tasks, index, rival) for rival in (index.reference, index.random))
    own = {
        "tasks": [listed[0].task.task for listed in tasks],
        **_scored(tasks, index, "graded"),  # one task is bootstrapped like several, so that rows of means compare
        "p_vs_none": None if reference is None else stats.sign_flip(*reference),
        "p_vs_random": None if beside is None else stats.sign_flip(*beside),
        "gain_vs_random": _gain(beside),
    }
    return _row("means", own, tasks, index, times)


def _scored(tasks: Sequence[Sequence[Cell]], index: Index, estimated_as: stats.Metric) -> Row:
    """Mean over tasks of a method's scores, and of those without any visual token."""
    score = _estimate(tasks, index, estimated_as)
    blind = [index.text_only(listed[0]) for listed in tasks]
    return {
        "accuracy": number(score.mean),
        "accuracy_low": number(score.low),
        "accuracy_high": number(score.high),
        "text_only_accuracy": number(_estimate(blind, index, metric_of(tasks[0][0])).mean) if all(blind) else None,
    }


def _row(kind: Rows, own: Row, tasks: Sequence[Sequence[Cell]], index: Index, times: Times) -> Row:
    """A row with every figure that its kind has: what is its kind's own, and what all rows say alike."""
    first, members = tasks[0][0], [cell for listed in tasks for cell in listed]
    seeds = sorted({cell.seed for cell in members if cell.seed is not None})
    boundaries = {index.head(cell, "boundary") for cell in members}
    timed = times.get((first.model.name, first.method, first.budget), {})
    found: Row = {
        "method": first.method,
        "control": first.control,
        "metric": metric_name(first),
        "unit": "%",
        "model": first.model.name,
        "n": sum(min(index.answered(cell) for cell in listed) for listed in tasks),
        "budget_requested": first.budget,
        "matched_by": first.match,
        "seed": seeds[0] if len(seeds) == 1 else None,
        "seeds": seeds,
        "boundary": boundaries.pop() if len(boundaries) == 1 else None,
        **{figure.name: _recorded(figure, members, index, timed) for figure in FIGURES if figure.source != "rows"},
        "p_vs_none_adjusted": None,
        "p_vs_random_adjusted": None,
        "agreement": mean(_agreement(cell, index) for cell in members),
        **_groups(tasks, index, metric_of(first)),
        "failures": sum(len(index.result(cell).failures) for cell in members),
        **own,
    }
    found["budget_realised"] = realised = _realised(first, found, index)
    found["budget_deviation"] = None if realised is None or first.budget is None else realised - first.budget
    return {figure.name: found[figure.name] for figure in figures_of(kind)}


def _recorded(figure: Figure, members: Sequence[Cell], index: Index, timed: Mapping[str, Any]) -> Any:
    """A figure that a pass recorded: of the method's timing, or of its cells together."""
    if figure.source == "timing":
        return figure.read(timed.get)
    values = [figure.read(partial(index.head, cell)) for cell in members]
    if figure.over == "first":
        return values[0]
    if figure.over == "mean":
        return mean(values)
    known = [value for value in values if value is not None]
    return int(sum(known)) if known else None


def _realised(first: Cell, row: Row, index: Index) -> float | None:
    """The share that a row's budget means, as it was measured."""
    if first.budget is None:
        return None
    if row["form"] == "same tokens":  # shares of tokens are met in pixels; FLOPs and time are not met at all
        return row["picture_ratio"] if first.match in ("layer_mean_ratio", "kv_ratio", "kv_read_ratio") else None
    realised = row[_REALISED[first.match]]
    if realised is None and first.match == MEASURED:  # without a timing pass: what was measured for the knob
        realised = (index.head(first, "solved") or {}).get("realised")
    return realised


def _gain(pair: tuple[list[float], list[float]] | None) -> float | None:
    """Mean difference over the questions that both answered: what a paired test is about."""
    return None if pair is None else number((mean(pair[0]) or 0.0) - (mean(pair[1]) or 0.0))


def _together(tasks: Sequence[Sequence[Cell]], index: Index, rival: Rival) -> tuple[list[float], list[float]] | None:
    """The pairs of several tasks, one after another; None where one of them has none."""
    pairs = [_paired(listed, index, rival) for listed in tasks]
    found = [pair for pair in pairs if pair is not None]
    if len(found) < len(pairs):
        return None
    mine, theirs = (list(chain.from_iterable(pair[side] for pair in found)) for side in (0, 1))
    return (mine, theirs) if mine else None


def _paired(members: Sequence[Cell], index: Index, rival: Rival) -> tuple[list[float], list[float]] | None:
    """Scores of the questions that both answered, each the mean over seeds."""
    others = rival(members[0])
    if not others or members[0].method in (others[0].method, REFERENCE):
        return None
    if not all(index.is_mean(cell) for cell in (*members, *others)):
        return None
    mine = mean_scores(index.scores(cell) for cell in members)
    theirs = mean_scores(index.scores(cell) for cell in others)
    both = [question for question in mine if question in theirs]
    return ([mine[q] for q in both], [theirs[q] for q in both]) if both else None


def _agreement(cell: Cell, index: Index) -> float | None:
    """Share of answers that equal the unpruned run's."""
    others = index.reference(cell)
    if not others:
        return None
    mine, theirs = index.answers(cell), index.answers(others[0])
    both = [question for question in mine if question in theirs]
    return number(stats.agreement([mine[q] for q in both], [theirs[q] for q in both]))


def _groups(tasks: Sequence[Sequence[Cell]], index: Index, metric: stats.Metric) -> Row:
    """Scores on easy and on hard questions, over all tasks together; None where there is no such split."""
    known = [parts for listed in tasks if (parts := _split_of(listed, index)) is not None]
    if len(known) < len(tasks):
        return {f"{group}_{name}": None for group in Split._fields for name in ("n", "accuracy", "low", "high")}
    seeds = min(len(listed) for listed in tasks)
    found: Row = {}
    for group in Split._fields:
        merged: list[Scores] = [{} for _ in range(seeds)]
        for listed, parts in zip(tasks, known, strict=True):
            answered = mean_scores(index.scores(cell) for cell in listed[:seeds])
            asked = [question for question in getattr(parts, group) if question in answered]
            for seed, cell in enumerate(listed[:seeds]):
                merged[seed] |= {question: index.scores(cell)[question] for question in asked}
        score = stats.seeds_estimate(matrix(merged, list(merged[0])), metric)
        found |= {
            f"{group}_n": len(merged[0]),
            f"{group}_accuracy": number(score.mean),
            f"{group}_low": number(score.low),
            f"{group}_high": number(score.high),
        }
    return found


def _split_of(members: Sequence[Cell], index: Index) -> Split | None:
    """Easy and hard questions at the cells' budget."""
    unpruned, downscaled = index.reference(members[0]), index.downscaled(members[0])
    if not unpruned or not downscaled or not index.scores(downscaled[0]):
        return None
    if not all(index.is_mean(cell) for cell in (*members, unpruned[0], downscaled[0])):
        return None
    return split(index.scores(unpruned[0]), index.scores(downscaled[0]))


def mean(values: Any) -> float | None:
    """Mean of the numbers among ``values``; None where there is none."""
    numbers = [float(value) for value in values if value is not None]
    return sum(numbers) / len(numbers) if numbers else None


def number(value: float | None) -> float | None:
    """A number as JSON can hold it: NaN becomes null."""
    return None if value is None or math.isnan(value) else value
