"""How good a pruned model is on calibration questions: by its answers, by their likelihood, by divergence."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from tokentrim.calibrate.likelihood import generate, likelihood
from tokentrim.calibrate.options import CalibrationOptions, Direction, Quality
from tokentrim.config.specs import strategy_from
from tokentrim.errors import EngineError
from tokentrim.loading import Loaded
from tokentrim.plugins.loader import registry
from tokentrim.runs.answer import run_cell
from tokentrim.runs.cells import Cell, ModelTarget
from tokentrim.runs.work import Work, work_of

if TYPE_CHECKING:
    from torch import Tensor

    from tokentrim.calibrate.state import CalibrationState

SPLIT: Final = "calibration"
Measure = Callable[[Cell, Work], float]
MeasureNumbers = Callable[[Cell, Work], list[float]]


class Bench:
    """One model and its calibration questions: measures strategies, each once, and remembers in a state file.

    The model is loaded when the first measurement is taken, and not at all where all of them are remembered.
    """

    def __init__(
        self, options: CalibrationOptions, target: ModelTarget, state: CalibrationState, told: Callable[[str], None]
    ) -> None:
        self._options, self._target, self._state, self._told = options, target, state, told
        self._loaded: Loaded | None = None
        self._works: dict[str, Work] = {}

    def per_task(self, name: str, spec: Mapping[str, Any], measure: Measure, text: str) -> list[float]:
        """A measurement of a strategy on every task.

        Args:
            name: of the measurement; two that may differ in value differ in it.
            spec: the strategy as a plain dict.
            measure: takes it.
            text: what to tell when it is taken.
        """
        results = [
            self._state.measured(f"{name}:{cell.key}", partial(self._measured, cell, measure))
            for cell in self._cells(spec)
        ]
        self._told(text)
        return results

    def numbers_per_task(self, name: str, measure: MeasureNumbers, length: int, text: str) -> list[list[float]]:
        """As :meth:`per_task`, of measurements that are ``length`` numbers and bring their own strategy."""
        results: list[list[float]] = []
        for cell in self._cells({"name": "none"}):
            taken: list[float] = []

            def number(place: int, cell: Cell = cell, taken: list[float] = taken) -> float:
                if not taken:
                    taken.extend(measure(cell, self._work(cell)))
                return taken[place]

            results.append(
                [self._state.measured(f"{name}[{place}]:{cell.key}", partial(number, place)) for place in range(length)]
            )
        self._told(text)
        return results

    def _measured(self, cell: Cell, measure: Measure) -> float:
        return measure(cell, self._work(cell))

    def _cells(self, spec: Mapping[str, Any]) -> list[Cell]:
        """One cell per task, on its calibration questions."""
        options, strategy = self._options, strategy_from(dict(spec))
        return [
            Cell(
                self._target, task, task.asked(SPLIT, options.samples)[1], SPLIT, str(spec["name"]), strategy, "fixed",
                task.max_new_tokens or registry("task").get(task.task).max_new_tokens, options.batch_size,
            )
            for task in options.tasks
        ]  # fmt: skip

    def _work(self, cell: Cell) -> Work:
        """A task's questions as inputs, made once."""
        name = cell.task.task
        if name not in self._works:
            if self._loaded is None:
                self._loaded = self._target.load()
            self._works[name] = work_of(cell, self._loaded)
        return self._works[name]


def quality_of(bench: Bench, spec: Mapping[str, Any], kind: Quality, text: str) -> float:
    """Quality of a strategy: mean over tasks, so that a task counts the same however many questions it has.

    Args:
        bench: the model and the questions.
        spec: the strategy as a plain dict.
        kind: ``score``, in 0..1; or ``likelihood``, the mean log-likelihood of the right answers in nats per token.
        text: what to tell while it is measured.
    """
    return statistics.fmean(bench.per_task(kind, spec, _score if kind == "score" else likelihood, text))


def _score(cell: Cell, work: Work) -> float:
    """Mean score of the answers, or what the task says of all of them together.

    Raises:
        EngineError: when a question has no answer.
    """
    result = run_cell(cell, work)
    if result.failures:
        raise EngineError(f"{cell.where}: {result.failures[0]}")
    aggregate = result.head["aggregate"]
    return statistics.fmean(sample["score"] for sample in result.samples) if aggregate is None else aggregate


def next_token(cell: Cell, work: Work) -> list[Tensor]:
    """float64 [V] per question on the host: log-probabilities of the first new token, in the order of the questions."""
    import torch

    rows: dict[int, Tensor] = {}
    for batch in work.batches:
        output = generate(cell, work.loaded, batch, 1, output_logits=True, return_dict_in_generate=True)
        likely = torch.log_softmax(output.logits[0].double(), dim=-1).cpu()
        rows |= dict(zip(batch.places, likely, strict=True))
    return [rows[place] for place in sorted(rows)]


def divergence(withdrawn: Tensor, full: Tensor, direction: Direction) -> float:
    """Kullback-Leibler divergence in nats of two next-token distributions.

    Args:
        withdrawn: float64 [V], log-probabilities of the pruned model.
        full: float64 [V], of the unpruned one.
        direction: ``withdrawn-full`` is KL(withdrawn || full).
    """
    p, q = (withdrawn, full) if direction == "withdrawn-full" else (full, withdrawn)
    return max(0.0, float((p.exp() * (p - q)).sum()))  # rounding may leave a hair below zero
