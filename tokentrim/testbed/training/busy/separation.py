"""Do methods separate on the busy pictures? Read from the folders of finished comparisons; the check prints it.

A testbed on which everything scores alike, or on which something pruned is as good as what is needed, ranks nothing.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from rich.table import Table

from tokentrim.errors import complaint
from tokentrim.testbed.busy.tasks import TASKS
from tokentrim.testbed.training.busy.check import NINTH

LEAST_SPREAD: Final = 0.25  # between the means of the best and the worst method
ORACLE: Final = "oracle"
BESIDE: Final = ("none", "text-only", "downscale", "random", "uniform", "pool", ORACLE)  # controls are no methods
RESAMPLES: Final = 2000
_TAIL: Final = 2.5  # percent on each side of an interval
_SEED: Final = 20
Scores = dict[str, dict[str, list[float]]]
"""Scores of one method at one budget by task and question, one per seed."""
Question = tuple[float, str, str, str]
"""Budget, method, task and sample."""


@dataclass(frozen=True)
class MethodMean:
    """A mean over tasks, and the ends of its 95 % interval over questions."""

    name: str
    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.name} {100 * self.mean:.1f} [{100 * self.low:.1f}, {100 * self.high:.1f}]"


@dataclass(frozen=True)
class Separation:
    """What one budget tells apart: methods from the best to the worst, and what the oracle has over each of them.

    over: mean difference of the oracle to each method on fine tasks, the smallest first; questions are paired. Empty at
    budgets at which that is not judged.
    """

    budget: float
    methods: tuple[MethodMean, ...]
    over: tuple[MethodMean, ...] = ()

    @property
    def spread(self) -> float:
        """Between the means of the best and the worst method."""
        return self.methods[0].mean - self.methods[-1].mean

    @property
    def median(self) -> MethodMean:
        """The method in the middle; of two, the better one."""
        return self.methods[(len(self.methods) - 1) // 2]

    def complaints(self) -> Iterator[str]:
        """What is not told apart."""
        if self.spread < LEAST_SPREAD:
            yield f"methods spread over {100 * self.spread:.1f} points, below {100 * LEAST_SPREAD:.0f}"
        if self.methods[0].low <= self.median.high:
            yield "the intervals of the best and of the median method touch"
        near = [found.name for found in self.over if found.low <= 0]
        if near:
            yield f"within noise of the oracle on fine tasks: {', '.join(near)}"


def read_separations(folders: Sequence[Path], model: str) -> list[Separation]:
    """What every budget of comparisons tells apart; one may ask more of the same questions than another.

    Raises:
        ValueError: where one is no folder of a comparison of this model on busy tasks; without `oracle` and methods.
    """
    asked: dict[Question, list[float]] = {}
    for folder in folders:
        asked |= _read(folder, model)  # a question that was asked before has the same scores
    found: dict[float, dict[str, Scores]] = {}
    for (budget, method, task, sample), scores in asked.items():
        found.setdefault(budget, {}).setdefault(method, {}).setdefault(task, {})[sample] = scores
    separations = [_separation(budget, *_complete(scores)) for budget, scores in sorted(found.items(), reverse=True)]
    if not any(separation.over for separation in separations):
        must = f"have {ORACLE}, other methods and fine tasks at {NINTH:.0%}"
        raise ValueError(complaint(f"the comparison in {_named(folders)}", must, list(found)))
    return separations


def separation_table(separations: list[Separation], folders: Sequence[Path]) -> Table:
    """The same as a table, in percent."""
    columns = ("budget", "methods", "spread", "best", "median", "worst", "nearest to the oracle, fine", "verdict")
    table = Table(*columns, title=f"methods in {_named(folders)}, means over tasks; controls are none")
    for s in separations:
        ends = (str(s.methods[0]), str(s.median), str(s.methods[-1]))
        nearest = str(s.over[0]) if s.over else ""
        verdict = "; ".join(s.complaints()) or "ok"
        table.add_row(f"{s.budget:.0%}", str(len(s.methods)), f"{100 * s.spread:.1f}", *ends, nearest, verdict)
    return table


def _named(folders: Sequence[Path]) -> str:
    return " and ".join(str(folder) for folder in folders)


def _read(folder: Path, model: str) -> dict[Question, list[float]]:
    """Scores of every question, one per seed. A question that failed has none."""
    try:
        lines = (folder / "results.jsonl").read_text(encoding="utf-8").splitlines()
        rows: list[dict[str, Any]] = [json.loads(line) for line in lines]
        of = {row["model"] for row in rows}
        asked = [
            (_number(row["budget_requested"]), str(row["method"]), str(row["task"]), str(row["sample"]),
             _number(row["score"]))
            for row in rows
        ]  # fmt: skip
    except (OSError, ValueError, KeyError, TypeError) as cause:
        hint = "name the folder that tokentrim compare wrote to"
        raise ValueError(complaint(f"{folder}", "be the folder of a finished comparison", str(cause), hint)) from cause
    if not of <= {model, Path(model).name}:
        raise ValueError(complaint(f"the model of the comparison in {folder}", f"be {model}", sorted(of)))
    found: dict[Question, list[float]] = {}
    for budget, method, task, sample, score in asked:
        if budget is not None and score is not None and task in TASKS:
            found.setdefault((budget, method, task, sample), []).append(score)
    if not found:
        must = "be the folder of a finished comparison on busy tasks"
        raise ValueError(complaint(f"{folder}", must, "no answers to them at a budget"))
    return found


def _number(value: Any) -> float | None:
    return None if value is None else float(value)


def _complete(scores: Mapping[str, Scores]) -> tuple[list[str], dict[str, NDArray[np.float64]]]:
    """Methods that answered every task, and per task their scores, [methods, questions that all of them answered]."""
    tasks = [name for name in TASKS if any(name in answered for answered in scores.values())]
    methods = [name for name, answered in scores.items() if all(task in answered for task in tasks)]
    grids: dict[str, NDArray[np.float64]] = {}
    for task in tasks:
        shared = sorted(set[str].intersection(*(set(scores[name][task]) for name in methods))) if methods else []
        if shared:
            grids[task] = np.array([[np.mean(scores[name][task][q]) for q in shared] for name in methods])
    return methods, grids


def _separation(budget: float, methods: list[str], grids: Mapping[str, NDArray[np.float64]]) -> Separation:
    judged = [name for name in methods if name not in BESIDE]
    if not judged or not grids:
        raise ValueError(complaint(f"a comparison at {budget:.0%}", "have methods beside controls", methods))
    means, drawn = resampled(list(grids.values()))
    rows = [_measured(name, means[i], drawn[:, i]) for i, name in enumerate(methods) if name in judged]
    over: list[MethodMean] = []
    fine = [grid for task, grid in grids.items() if TASKS[task].grain == "fine"]
    if budget == NINTH and fine and ORACLE in methods:
        means, drawn = resampled(fine)
        best = methods.index(ORACLE)
        over = [
            _measured(name, means[best] - means[i], drawn[:, best] - drawn[:, i])
            for i, name in enumerate(methods)
            if name in judged
        ]
    rows.sort(key=lambda found: -found.mean)
    return Separation(budget, tuple(rows), tuple(sorted(over, key=lambda found: found.low)))


def resampled(grids: list[NDArray[np.float64]]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Means over tasks, [methods], and those of questions drawn anew, the same for all methods, [draws, methods]."""
    rng = np.random.default_rng(_SEED)
    weights = [rng.multinomial(n, [1 / n] * n, RESAMPLES) / n for n in (grid.shape[1] for grid in grids)]
    drawn = np.mean([weight @ grid.T for weight, grid in zip(weights, grids, strict=True)], 0)
    return np.mean([grid.mean(1) for grid in grids], 0), drawn


def _measured(name: str, mean: float, drawn: NDArray[np.float64]) -> MethodMean:
    low, high = np.percentile(drawn, (_TAIL, 100 - _TAIL))
    return MethodMean(name, float(mean), float(low), float(high))
