"""Finished cells by what they are, and the ones that each is compared with."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from tokentrim.runs.cells import CONTROL, REFERENCE, TEXT_ONLY, Cell
from tokentrim.runs.results import CellResult
from tokentrim.runs.specs import DOWNSCALE

_SAME: Final = 1e-9  # between a task's own score and the mean of its answers' scores
Scores = dict[str, float]
"""Scores of answered questions, by question."""


class Index:
    """Finished cells of a comparison.

    Attributes:
        cells: those that are finished, in the comparison's order.
    """

    def __init__(self, cells: Sequence[Cell], results: Mapping[str, CellResult]) -> None:
        self.cells: Final = [cell for cell in cells if cell.key in results]
        self._results = results
        self._variants: dict[tuple[Any, ...], list[Cell]] = {}
        self._scores: dict[str, Scores] = {}
        for cell in self.cells:
            self._variants.setdefault(variant_of(cell), []).append(cell)

    def result(self, cell: Cell) -> CellResult:
        """A cell's result."""
        return self._results[cell.key]

    def head(self, cell: Cell, name: str) -> Any:
        """One entry of a cell's head; None where it has none, and for a time that other cells may have lengthened."""
        return self.result(cell).cost(name)

    def scores(self, cell: Cell) -> Scores:
        """A cell's scores, where single answers have one."""
        if cell.key not in self._scores:
            samples = self.result(cell).samples
            self._scores[cell.key] = {
                line["sample"]: line["score"]
                for line in samples
                if line["failure"] is None and line["score"] is not None
            }
        return self._scores[cell.key]

    def answered(self, cell: Cell) -> int:
        """Questions of a cell that have an answer."""
        return sum(line["failure"] is None for line in self.result(cell).samples)

    def is_mean(self, cell: Cell) -> bool:
        """Whether a cell's score is the mean of its answers' scores, so that intervals and paired tests say of it."""
        aggregate, scores = self.head(cell, "aggregate"), list(self.scores(cell).values())
        if aggregate is None:
            return True
        return bool(scores) and math.isclose(aggregate, math.fsum(scores) / len(scores), abs_tol=_SAME)

    def answers(self, cell: Cell) -> dict[str, str]:
        """A cell's answers, by question."""
        return {s["sample"]: s["prediction"] for s in self.result(cell).samples if s["failure"] is None}

    def seeds(self, cell: Cell) -> list[Cell]:
        """The cell with every seed that it ran with."""
        return self._variants[variant_of(cell)]

    def variants(self) -> list[list[Cell]]:
        """All cells, the seeds of one method at one budget on one task together."""
        return list(self._variants.values())

    def reference(self, cell: Cell) -> list[Cell]:
        """The unpruned run on the cell's questions."""
        return self._of(cell, REFERENCE, None)

    def random(self, cell: Cell) -> list[Cell]:
        """Random selection at the cell's budget, with all its seeds."""
        return self._of(cell, CONTROL, cell.budget)

    def text_only(self, cell: Cell) -> list[Cell]:
        """The run without any visual token from the boundary on at which the cell first dropped some."""
        boundary = self.head(cell, "boundary")
        return [] if boundary is None else self._of(cell, TEXT_ONLY, None, boundary)

    def downscaled(self, cell: Cell) -> list[Cell]:
        """Smaller pictures at the cell's budget."""
        if cell.budget is None:
            return []
        return [
            other
            for other in self.cells
            if other.control == DOWNSCALE
            and (other.model.name, other.task.task, other.budget) == (cell.model.name, cell.task.task, cell.budget)
        ][:1]

    def _of(self, cell: Cell, method: str, budget: float | None, boundary: int | None = None) -> list[Cell]:
        found = self._variants.get((cell.model.name, cell.task.task, method, budget, boundary), [])
        return [other for other in found if self.answered(other)]


def variant_of(cell: Cell) -> tuple[Any, ...]:
    """What tells a cell from all others of its comparison, but for its seed."""
    boundary = cell.boundary if cell.method == TEXT_ONLY else None
    return cell.model.name, cell.task.task, cell.method, cell.budget, boundary


def mean_scores(listed: Iterable[Scores]) -> Scores:
    """Mean over seeds of every question that all of them answered."""
    found = list(listed)
    if not found:
        return {}
    both = [question for question in found[0] if all(question in other for other in found[1:])]
    return {question: sum(scores[question] for scores in found) / len(found) for question in both}


def matrix(listed: Sequence[Scores], questions: Sequence[str]) -> NDArray[np.float64]:
    """Scores as [seeds, questions]."""
    values = [[scores[question] for question in questions] for scores in listed]
    return np.array(values, dtype=np.float64).reshape(len(values), len(questions))
