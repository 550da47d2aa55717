"""What the cells of one task share, and a cell's strategy with its knob solved."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tokentrim.contracts.tasks import Sample, Task
from tokentrim.errors import StrategyError, complaint
from tokentrim.loading import Loaded
from tokentrim.plugins.loader import registry
from tokentrim.runs.batches import Batch, expected_new_tokens, make_batches
from tokentrim.runs.cells import Cell
from tokentrim.runs.questions import questions_of
from tokentrim.runs.specs import MEASURED

if TYPE_CHECKING:
    from tokentrim.contracts.strategy import Strategy


@dataclass(frozen=True)
class PromptCounts:
    """The counts of one question's prompt.

    Attributes:
        n_visual: visual tokens.
        n_text: all other tokens.
    """

    n_visual: int
    n_text: int


@dataclass(frozen=True)
class Work:
    """One task on one loaded model: what every cell of it shares.

    Attributes:
        loaded: the model and its processor.
        task: scores the answers.
        samples: the questions.
        batches: the same as model inputs.
        new_tokens: typical length of an answer, for decode-time budgets.
        full: where pictures were made smaller, the counts of each question's prompt with its full ones, by place.
    """

    loaded: Loaded
    task: Task
    samples: Sequence[Sample]
    batches: Sequence[Batch]
    new_tokens: int
    full: Mapping[int, PromptCounts] = field(default_factory=dict[int, PromptCounts])


def work_of(cell: Cell, loaded: Loaded) -> Work:
    """The questions of a cell's task as inputs of its model.

    Raises:
        DataError: when the split has fewer questions, or the task gives something else.
    """
    task = registry("task").get(cell.task.task)
    samples = questions_of(task, cell.split, cell.n)
    batches = make_batches(loaded, samples, cell.batch_size)
    return Work(loaded, task, samples, batches, expected_new_tokens(loaded, samples, cell.max_new_tokens))


class Unreachable(Exception):
    """A budget that a strategy cannot be brought to on these questions."""


def solve(cell: Cell, work: Work, batch: Batch) -> Strategy:
    """The cell's strategy for prompts like the batch's, its knob solved for the budget.

    Raises:
        Unreachable: when no value of the knob meets the budget.
    """
    spec, shape = cell.strategy, cell.model.shape
    strategy = spec.strategy.for_answer(cell.max_new_tokens)
    ratios = {} if spec.budget is None else spec.budget.ratios
    if cell.budget is not None and cell.match == MEASURED:
        return measured(cell)
    if cell.budget is not None:
        ratios = {cell.match: cell.budget}
    if not ratios:
        return strategy
    n_text = round(statistics.mean(batch.n_text))
    try:
        strategy, _ = strategy.at_budget(shape, batch.n_visual, **ratios, n_text=n_text, new_tokens=work.new_tokens)
    except StrategyError as reason:
        raise Unreachable(str(reason)) from reason
    return strategy


def measured(cell: Cell) -> Strategy:
    """The strategy whose knob was solved by measuring, before any cell ran.

    Raises:
        Unreachable: when no value of the knob meets the budget, as measured.
        StrategyError: when nothing was measured: only a comparison as a whole can do that.
    """
    if cell.solved is None:
        raise StrategyError(
            complaint(f"the share of time of {cell.where}", "be measured before the cell runs", None,
                      "run it as a part of a comparison")
        )  # fmt: skip
    if cell.solved.strategy is None:
        raise Unreachable(cell.solved.reason)
    return cell.solved.strategy.strategy
