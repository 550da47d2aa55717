"""Running one cell: every question under one strategy, scored, with what it cost."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from tokentrim.contracts.sites import Need
from tokentrim.contracts.tasks import Sample
from tokentrim.counting.forecast import is_static
from tokentrim.engine.generate import answer_lengths
from tokentrim.errors import UnsupportedError, reason_of
from tokentrim.loading import Loaded
from tokentrim.runs.batches import Batch, evidence_of, make_batch, model_inputs
from tokentrim.runs.cells import CONTROLS, Cell, first_boundary, prunes
from tokentrim.runs.costs import Costs
from tokentrim.runs.downscale import ratios, smaller
from tokentrim.runs.figures import CLOCKED, REPORTED
from tokentrim.runs.kept import Kept, pieces
from tokentrim.runs.questions import aggregate_of, require_text, score_of
from tokentrim.runs.ranks import ALONE, Ranks
from tokentrim.runs.results import CellResult
from tokentrim.runs.work import Unreachable, Work, solve

if TYPE_CHECKING:
    from torch import Tensor

    from tokentrim.contracts.strategy import Strategy
    from tokentrim.engine.tokens.trace import Trace
    from tokentrim.session import Session

_COSTS: Final = (*REPORTED, *sorted(CLOCKED), "new_tokens", "pruning_events")


@dataclass
class CellAnswers:
    """What some batches of one cell gave.

    Attributes:
        records: each question's line, by place.
        costs: of all answers.
        pictures: kept tokens of the first questions.
        boundaries: where each row first lost tokens, of rows that did, where the data decide that.
    """

    records: dict[int, dict[str, Any]] = field(default_factory=dict[int, dict[str, Any]])
    costs: Costs = field(default_factory=Costs)
    pictures: dict[str, Any] = field(default_factory=dict[str, Any])
    boundaries: list[int] = field(default_factory=list[int])

    def add(self, part: CellAnswers) -> None:
        """Add what a further batch gave."""
        self.records |= part.records
        self.costs += part.costs
        self.pictures |= part.pictures
        self.boundaries += part.boundaries


def run_cell(cell: Cell, work: Work, ranks: Ranks = ALONE) -> CellResult:
    """Answer every question of a cell. What fails is recorded, question by question.

    Several ranks answer a batch each in turn, and each of them returns the result of all: batches are never cut, so
    that it is the result of one process.
    """
    head: dict[str, Any] = {"key": cell.key, **cell.about(), "boundary": None, "skipped": None, "failure": None}
    try:
        work, about = _shown(cell, work)
    except Unreachable as reason:
        return CellResult({**head, "skipped": str(reason)}, [])
    except Exception as cause:
        lost = CellAnswers()
        for batch in work.batches:
            _fail(cell, lost, batch, cause)
        return _result(cell, work, {**head, "strategy": cell.strategy.as_dict(), "strategies": []}, lost)
    solved: dict[int, Strategy] = {}
    found: list[tuple[str | None, dict[int, CellAnswers]]] = ranks.gather(_own_batches(cell, work, ranks, solved))
    reason = next((reason for reason, _ in found if reason is not None), None)
    if reason is not None:
        return CellResult({**head, "skipped": reason}, [])
    answers = CellAnswers()
    for _, part in sorted((item for _, parts in found for item in parts.items()), key=lambda item: item[0]):
        answers.add(part)
    if answers.costs.due and answers.costs.pruning_events == 0:
        head["failure"] = f"{cell.where}: the strategy should have pruned, and no pruning event was seen"
    specs = [solved[n].spec() for n in sorted(solved)]
    head |= {
        "boundary": _boundary(cell, solved, answers),
        "strategy": None if cell.control else specs[-1] if specs else cell.strategy.as_dict(),
        "strategies": specs,
        "solved": cell.solved.about if cell.solved else None,
        **about,
    }
    return _result(cell, work, head, answers)


def _result(cell: Cell, work: Work, head: dict[str, Any], answers: CellAnswers) -> CellResult:
    """The cell's head with what its answers scored together and cost, and their lines."""
    records = [answers.records[place] for place in sorted(answers.records)]
    _aggregate(cell, work, records, head)
    figures = answers.costs.figures()
    return CellResult({**head, **{name: figures[name] for name in _COSTS}, "pictures": answers.pictures}, records)


def _shown(cell: Cell, work: Work) -> tuple[Work, dict[str, Any]]:
    """What the cell's model is shown, and what the head says of it: smaller pictures, for the control that does that.

    Raises:
        Unreachable: when pictures cannot be made small enough.
    """
    if cell.control is None:
        return work, {"picture_ratio": None, "form": None}
    found = smaller(cell, work)
    shares = list(found.shares.values())
    return found.work, {
        "picture_ratio": sum(shares) / len(shares) if shares else None,
        "form": ", ".join(found.forms) or None,
    }


def _boundary(cell: Cell, solved: dict[int, Strategy], answers: CellAnswers) -> int | None:
    """Where the cell's strategy first drops tokens: by its plan, or where the data decide, the questions' median."""
    if cell.control is not None or not solved:
        return None
    n_visual = max(solved)
    if all(is_static(strategy) for strategy in solved.values()):
        return first_boundary(solved[n_visual], cell.model.shape, n_visual)
    return statistics.median_low(answers.boundaries) if answers.boundaries else None


def _aggregate(cell: Cell, work: Work, records: Sequence[dict[str, Any]], head: dict[str, Any]) -> None:
    """Let the task score all answers together, where its metric is no mean of single scores."""
    samples = {sample.id: sample for sample in work.samples}
    answered = [(samples[r["sample"]], r["prediction"]) for r in records if r["failure"] is None]
    try:
        head["aggregate"] = aggregate_of(work.task, answered)
    except Exception as cause:  # a stranger's metric may raise anything
        told = f"{cell.where}: its answers could not be scored together: {reason_of(cause)}"
        head["failure"] = head["failure"] or told


def _own_batches(
    cell: Cell, work: Work, ranks: Ranks, solved: dict[int, Strategy]
) -> tuple[str | None, dict[int, CellAnswers]]:
    """(why the budget cannot be reached, or None; what each of this rank's batches gave, by the batch's number).

    Every rank solves every budget, on the batch on which one process would solve it.
    """
    parts: dict[int, CellAnswers] = {}
    for number, batch in enumerate(work.batches):
        part = CellAnswers()
        if ranks.owns(number):
            parts[number] = part
        try:
            if batch.n_visual not in solved:
                # A control has smaller pictures instead of a strategy; they are at its budget already.
                solved[batch.n_visual] = cell.strategy.strategy if cell.control else solve(cell, work, batch)
            strategy = solved[batch.n_visual]
        except Unreachable as reason:
            return str(reason), {}
        except Exception as cause:
            _fail(cell, part, batch, cause)
            continue
        if number in parts:
            try:
                _run_batch(cell, work, batch, strategy, part)
            except Unreachable as reason:
                return str(reason), {}
    return None, parts


def warm_up(cell: Cell, work: Work) -> None:
    """Answer the first question untimed: first calls pay for what later ones find ready."""
    from tokentrim.session import trim

    model = work.loaded.model
    with suppress(Exception), trim(model, "none"):  # what fails here fails again where it is recorded
        _generate(cell, work.loaded, make_batch(work.loaded, work.samples, [0]))


def _run_batch(cell: Cell, work: Work, batch: Batch, strategy: Strategy, answers: CellAnswers) -> None:
    """Answer one batch; if it fails, answer its questions one by one, so that one bad question spoils no other.

    Raises:
        Unreachable: when it is a control, and the model cannot give what that reads.
    """
    try:
        _answer(cell, work, batch, strategy, answers)
    except Exception as cause:
        if isinstance(cause, UnsupportedError) and strategy.name in CONTROLS:
            raise Unreachable(str(cause)) from cause  # nobody may have asked for it
        if len(batch.places) == 1:
            _fail(cell, answers, batch, cause)
            return
        for place in batch.places:
            single = make_batch(work.loaded, work.samples, [place])
            _run_batch(cell, work, single, strategy, answers)


def _fail(cell: Cell, answers: CellAnswers, batch: Batch, cause: Exception) -> None:
    """Record that a batch's questions have no answer, and why."""
    message = reason_of(cause)
    for place, sample in zip(batch.places, batch.samples, strict=True):
        answers.records[place] = record(cell, sample, failure=message)


def record(
    cell: Cell, sample: Sample, prediction: str | None = None, score: float | None = None, failure: str | None = None
) -> dict[str, Any]:
    """One question's line. A failed one has neither an answer nor a score, so it cannot pass for a wrong answer.

    One that is answered and has no score belongs to a task that scores all answers together.
    """
    return {
        "key": cell.key,
        **cell.about(),
        "sample": sample.id,
        "question": sample.question,
        "answer": sample.answer,
        "prediction": prediction,
        "score": score,
        "failure": failure,
    }


def _answer(cell: Cell, work: Work, batch: Batch, strategy: Strategy, answers: CellAnswers) -> None:
    """Generate, decode, score and account for one batch."""
    from tokentrim.session import trim

    model, processor = work.loaded
    with trim(model, strategy, record=True) as session:
        if Need.EVIDENCE in strategy.needed():
            session.annotate(evidence=evidence_of(work.task, batch))
        new = _generate(cell, work.loaded, batch)
    lengths = answer_lengths(model, new)
    for row, (place, sample) in enumerate(zip(batch.places, batch.samples, strict=True)):
        said = processor.tokenizer.decode(new[row, : lengths[row]], skip_special_tokens=True).strip()
        require_text(said, f"the answer to {sample.id!r}")
        answers.records[place] = record(cell, sample, said, score_of(work.task, sample, said))
        if place < cell.pictures and cell.control is None:
            spoken = pieces(processor.tokenizer, new[row, : lengths[row]].tolist())
            kept = Kept.of(session.trace, row, lengths[row] - 1).as_dict()
            pictures = None if sample.videos else len(sample.images)
            cells = session.placed(pictures, row) if batch.n_visual else "it has no picture"
            where = {"nowhere": cells} if isinstance(cells, str) else {}
            answers.pictures[sample.id] = {
                **kept, "tokens": spoken, "cells": None if isinstance(cells, str) else cells.as_dict(), **where
            }  # fmt: skip
    _account(cell, work, batch, strategy, session, lengths, answers)


def _generate(cell: Cell, loaded: Loaded, batch: Batch) -> Tensor:
    """New tokens of a batch, greedily, on the host."""
    import torch

    inputs = model_inputs(loaded, batch)
    with torch.inference_mode():
        output = loaded.model.generate(**inputs, max_new_tokens=cell.max_new_tokens, do_sample=False)
    return output[:, inputs["input_ids"].shape[1] :].cpu()


def _account(
    cell: Cell,
    work: Work,
    batch: Batch,
    strategy: Strategy,
    session: Session,
    lengths: list[int],
    answers: CellAnswers,
) -> None:
    """Add a batch's costs; every row is charged for its own answer, not for the longest of the batch."""
    session.annotate(new_tokens=lengths)
    report = session.report()
    # Smaller pictures have their shares of the full ones' prompt, not of their own.
    own = [
        ratios(cell.model.shape, work.full[place], batch, row, lengths[row]) if place in work.full else {}
        for row, place in enumerate(batch.places)
    ]
    due = prunes(strategy, cell.model.shape, batch.n_visual, max(lengths) - 1)
    answers.costs.add(report, lengths, due=due, ratios=own)
    if not is_static(strategy):
        losses = (_first_loss(session.trace, row) for row in range(len(lengths)))
        answers.boundaries += [first for first in losses if first is not None]


def _first_loss(trace: Trace, row: int) -> int | None:
    """The first layer that a row's tokens do not all reach."""
    full = trace.n_visual[row]
    return next((layer for layer in range(trace.n_layers) if len(trace.kept(layer, row)) < full), None)
