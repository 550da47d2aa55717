"""The timing pass: what a method saves and costs in time and memory beside the unpruned model, when no cell runs.

Each method at each budget is run in turn with the untouched model, A B A B, so that a machine that slows down slows
both; ratios are taken within such pairs. It times the same questions for all: the first ones of the task with the
longest answers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, replace
from itertools import groupby
from typing import TYPE_CHECKING, Any, Final

from tokentrim.compare.config import CompareConfig
from tokentrim.compare.folder import ResultsFolder
from tokentrim.contracts.sites import Need
from tokentrim.contracts.tasks import Split
from tokentrim.loading import Loaded
from tokentrim.plugins.loader import registry
from tokentrim.progress import Progress
from tokentrim.runs.batches import Batch, evidence_of, expected_new_tokens, make_batches, model_inputs
from tokentrim.runs.cells import TEXT_ONLY, Cell
from tokentrim.runs.downscale import smaller
from tokentrim.runs.questions import questions_of
from tokentrim.runs.results import CellResult
from tokentrim.runs.specs import Timing, digest
from tokentrim.runs.work import Unreachable, Work, solve

if TYPE_CHECKING:
    from tokentrim.contracts.strategy import Strategy
    from tokentrim.runs.spread import Spread
    from tokentrim.session import Session

SAVING: Final = "net saving"
UNCLEAR: Final = "within the spread"
NO_SAVING: Final = "no net saving"


@dataclass(frozen=True)
class Arm:
    """What is timed: some questions under one strategy.

    Attributes:
        work: the model and the questions.
        strategy: what prunes; None for the untouched model.
    """

    work: Work
    strategy: Strategy | None = None

    def trimmed(self, batch: Batch) -> AbstractContextManager[Session | None]:
        """The context that a batch runs in."""
        from tokentrim.session import trim

        if self.strategy is None:
            return nullcontext()
        session = trim(self.work.loaded.model, self.strategy, record=False)
        if Need.EVIDENCE in self.strategy.needed():
            session.annotate(evidence=evidence_of(self.work.task, batch))
        return session


@dataclass(frozen=True)
class Seconds:
    """One timed run over all batches of an arm.

    Attributes:
        prefill: from the calls of generate to the first new tokens: vision tower, prefill, selection, head.
        selection: scoring, selecting and gathering, of prefill and decoding together.
        decode: per further token, mean over the batches.
        total: from the calls to the last tokens.
    """

    prefill: float
    selection: float
    decode: float
    total: float


def run_once(arm: Arm, new_tokens: int) -> Seconds:
    """Answer an arm's questions with exactly ``new_tokens`` tokens each, and take the time."""
    import torch

    from tokentrim.runs.stopwatch import timed_generate

    prefill = selection = decode = total = 0.0
    model = arm.work.loaded.model
    for batch in arm.work.batches:
        inputs = model_inputs(arm.work.loaded, batch)
        with arm.trimmed(batch) as session, torch.inference_mode():
            timing = timed_generate(model, inputs, new_tokens, min_new_tokens=new_tokens)
            selection += session.report().selection_seconds if session else 0.0
        prefill += timing.prefill_seconds
        decode += timing.decode_seconds_per_token or 0.0
        total += timing.prefill_seconds + (timing.decode_seconds_per_token or 0.0) * (new_tokens - 1)
    return Seconds(prefill, selection, decode / len(arm.work.batches), total)


def pairs(unpruned: Arm, arm: Arm, repeats: int, new_tokens: int) -> list[tuple[Seconds, Seconds]]:
    """(unpruned, arm) of neighbouring runs, after an untimed one of each."""
    for warm in (unpruned, arm):
        run_once(warm, new_tokens)
    return [(run_once(unpruned, new_tokens), run_once(arm, new_tokens)) for _ in range(repeats)]


def peak_of(arm: Arm, new_tokens: int) -> int:
    """Most bytes that a run of the arm's first batch held beyond the weights."""
    import torch

    from tokentrim.runs.stopwatch import generate, peak_bytes

    model, batch = arm.work.loaded.model, arm.work.batches[0]
    inputs = model_inputs(arm.work.loaded, batch)
    with arm.trimmed(batch), torch.inference_mode():
        return peak_bytes(model.device, lambda: generate(model, inputs, new_tokens, min_new_tokens=new_tokens))


def time_cells(
    config: CompareConfig,
    cells: Sequence[Cell],
    finished: Mapping[str, CellResult],
    folder: ResultsFolder,
    told: Progress,
    before: Callable[[], None] = lambda: None,
) -> list[dict[str, Any]]:
    """The timing pass over every method and budget, one row each; what the folder holds is not measured again.

    To be called when no cell runs any more: whatever else the machine does is in the numbers.

    Args:
        config: of the comparison.
        cells: all of it.
        finished: their results by key.
        folder: keeps what is measured.
        told: hears of each.
        before: called once, before the first measurement; not where everything is there.
    """
    if config.timing is None:
        return []
    from tokentrim.runs.stopwatch import settled

    rows: list[dict[str, Any]] = []
    begun = False
    for target, listed in groupby(cells, key=lambda cell: cell.model):
        chosen = _to_time(list(listed), finished)
        keys = {cell.key: digest({"cell": cell.key, "timing": config.timing.model_dump()}) for cell in chosen}
        held = {cell.key: folder.measured("timings", keys[cell.key]) for cell in chosen}
        if any(row is None for row in held.values()):
            if not begun:
                before()
            begun = True
            told.say(f"timing {len(chosen)} methods and budgets on {target.name}, in turn with the unpruned model")
            told.start(len(chosen), sum(row is not None for row in held.values()))
            loaded = target.load()
            unpruned = Arm(timed_work(chosen[0], loaded, chosen[0].split, config.timing.questions))
            with settled():
                peak = peak_of(unpruned, config.timing.new_tokens) if config.timing.memory else None
                for cell in chosen:
                    if held[cell.key] is None:
                        held[cell.key] = _row(cell, unpruned, peak, config.timing)
                        folder.keep("timings", keys[cell.key], held[cell.key])
                        told.step(f"timing {cell.method}{'' if cell.budget is None else f' at {cell.budget:.0%}'}")
        rows += [row for row in held.values() if row is not None]
    return rows


def _to_time(cells: Sequence[Cell], finished: Mapping[str, CellResult]) -> list[Cell]:
    """One cell per method and budget of a model: on the task with the longest answers, with the first seed."""
    task = timed_task(cells)
    found: dict[tuple[str, float | None], Cell] = {}
    for cell in cells:
        result = finished.get(cell.key)
        usable = result is not None and result.head["skipped"] is None and not result.failures
        if cell.task.task == task and cell.method != TEXT_ONLY and usable:
            found.setdefault((cell.method, cell.budget), cell)
    return list(found.values())


def timed_task(cells: Sequence[Cell]) -> str:
    """The task whose questions are timed: the first with the longest answers, where decoding has something to do."""
    return max(cells, key=lambda cell: cell.max_new_tokens).task.task


def timed_work(cell: Cell, loaded: Loaded, split: Split, n: int) -> Work:
    """The first questions of a cell's task, in one batch where their pictures have one size."""
    task = registry("task").get(cell.task.task)
    samples = questions_of(task, split, n, fewer=True)
    everything = questions_of(task, cell.split, cell.n)
    return Work(
        loaded,
        task,
        samples,
        make_batches(loaded, samples, n),
        expected_new_tokens(loaded, everything, cell.max_new_tokens),
    )


def arm_of(cell: Cell, work: Work) -> Arm:
    """A cell's method on some questions.

    Raises:
        Unreachable: when it cannot be brought to its budget on them.
    """
    if cell.control is not None:
        return Arm(smaller(replace(cell, batch_size=len(work.samples)), work).work)
    return Arm(work, solve(cell, work, work.batches[-1]))


def _row(cell: Cell, unpruned: Arm, unpruned_peak: int | None, settings: Timing) -> dict[str, Any] | None:
    """One method at one budget; None where it cannot be brought to its budget on these questions."""
    from tokentrim.runs.spread import Spread

    try:
        arm = arm_of(cell, unpruned.work)
    except Unreachable:
        return None
    timed = pairs(unpruned, arm, settings.repeats, settings.new_tokens)
    row: dict[str, Any] = {**cell.about(), **settings.model_dump(), "questions": len(unpruned.work.samples)}
    for name in ("prefill", "decode", "total"):
        theirs, mine = ([getattr(pair[side], name) for pair in timed] for side in (0, 1))
        ratio = Spread.of([b / a for a, b in zip(theirs, mine, strict=True)])
        row |= {
            f"{name}_spread": asdict(Spread.of(mine)),
            f"{name}_unpruned_spread": asdict(Spread.of(theirs)),
            f"{name}_ratio_spread": asdict(ratio),
            f"{name}_time_ratio": ratio.median,
        }
        if name != "decode":
            row[f"{name}_verdict"] = verdict(ratio, Spread.of(theirs))
    prefill = row["prefill_ratio_spread"]
    peak = peak_of(arm, settings.new_tokens) if settings.memory else None
    return {
        **row,
        "prefill_time_low": prefill["low"],
        "prefill_time_high": prefill["high"],
        "selection_spread": asdict(Spread.of([mine.selection for _, mine in timed])),
        "peak_bytes": peak,
        "unpruned_peak_bytes": unpruned_peak,
        "peak_memory_ratio": peak / unpruned_peak if peak is not None and unpruned_peak else None,
    }


def verdict(ratio: Spread, unpruned: Spread) -> str:
    """Whether three of four runs of a method are faster, or slower, by more than unpruned runs differ.

    Args:
        ratio: of its time to the unpruned run's, selection included.
        unpruned: of the unpruned runs; the distance of its quartiles is the spread.
    """
    spread = (unpruned.high - unpruned.low) / unpruned.median
    if ratio.high < 1 - spread:
        return SAVING
    return NO_SAVING if ratio.low > 1 + spread else UNCLEAR
