"""Where cells are run: what one process keeps from job to job, so that a model is loaded once per worker."""

from __future__ import annotations

import os
import pickle
import socket
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokentrim.errors import DataError, TokentrimError, UnsupportedError, complaint, reason_of
from tokentrim.executors.base import Job, Outcome
from tokentrim.plugins.loader import LIMIT_VARIABLE, registry

if TYPE_CHECKING:
    from tokentrim.loading import Loaded
    from tokentrim.runs.cells import Cell, ModelTarget
    from tokentrim.runs.results import CellResult
    from tokentrim.runs.work import Work


def run_job(job: Job) -> CellResult:
    """Run a job in this process, which keeps the job's model and questions for the next one.

    Questions that fail are recorded in the result.

    Raises:
        TokentrimError: when the job cannot be run here as it would be where it was made: another version, other
            model files, a plugin that is missing.
    """
    return _of_this_process().run(job)


@cache
def _of_this_process() -> Workplace:
    return Workplace()


class Workplace:
    """A process's model and questions; those of the last job are kept, and no others."""

    def __init__(self) -> None:
        self._target: ModelTarget | None = None
        self._loaded: Loaded | None = None
        self._placement: Mapping[str, str] = {}
        self._asked: tuple[Any, ...] = ()
        self._work: Work | None = None

    def run(self, job: Job) -> CellResult:
        """See :func:`run_job`."""
        from tokentrim.runs.answer import run_cell
        from tokentrim.runs.ranks import joined

        cell = job.cell or opened(job)
        result = run_cell(cell, self._work_of(cell), joined())
        result.head["placement"] = dict(self._placement)
        return result

    def attempt(self, job: Job) -> Reply:
        """The same, with what is raised as a value that travels between processes.

        Questions that cannot be asked, and whatever a stranger's task or a broken installation raises, fail this cell;
        the others go on. Ranks that share a cell's questions must not part: there everything is raised.
        """
        from tokentrim.runs.ranks import joined

        try:
            return Reply(self.run(job))
        except Exception as cause:
            if isinstance(cause, TokentrimError) and not isinstance(cause, DataError):
                return Reply(refusal=cause)
            if joined().size > 1:
                raise
            return Reply(failure=reason_of(cause))

    def _work_of(self, cell: Cell) -> Work:
        """The questions of a cell's task, kept as long as jobs ask for the same ones."""
        from tokentrim.runs.answer import warm_up
        from tokentrim.runs.work import work_of

        asked = (cell.model, cell.task, cell.split, cell.n, cell.batch_size, cell.max_new_tokens)
        if self._work is None or asked != self._asked:
            self._work = None
            loaded = self._model_of(cell.model)
            self._work, self._asked = work_of(cell, loaded), asked
            warm_up(cell, self._work)
        return self._work

    def _model_of(self, target: ModelTarget) -> Loaded:
        """A model; the one before it is dropped first, because two may not fit."""
        from tokentrim.engine.report import describe

        if self._loaded is None or target != self._target:
            self._loaded = None
            self._loaded = target.load()
            self._target, self._placement = target, describe(self._loaded.model)
        return self._loaded


@dataclass(frozen=True)
class Reply:
    """What a worker process says of a job: one of three things.

    Attributes:
        result: it is done.
        failure: this process could not do it.
        refusal: no process should; the run ends with it.
    """

    result: CellResult | None = None
    failure: str | None = None
    refusal: TokentrimError | None = None

    def outcome(self, job: Job) -> Outcome:
        """As an executor yields it.

        Raises:
            TokentrimError: the refusal.
        """
        if self.refusal is not None:
            raise self.refusal
        return Outcome(job, self.result, self.failure)


def job_of(cell: Cell) -> Job:
    """A cell as a job for this process."""
    return Job(
        key=cell.key,
        where=cell.where,
        model=cell.model.name,
        task=cell.task.task,
        device=cell.model.device,
        home=os.getcwd(),
        plugins=os.environ.get(LIMIT_VARIABLE),
        conditions=_conditions(cell),
        cell=cell,
    )


def packed(job: Job) -> Job:
    """A job for any process.

    Raises:
        UnsupportedError: when its strategy cannot be pickled.
    """
    if job.cell is None:
        return job
    # A copy without the key that was computed here: another process computes its own.
    target = replace(job.cell.model, folder=job.cell.model.folder.absolute())
    try:
        parcel = pickle.dumps(replace(job.cell, model=target))
    except Exception as cause:  # whatever pickle meets in a stranger's strategy
        raise UnsupportedError(
            complaint(f"the strategy of {job.where}", "be picklable to run in another process",
                      hint=f"{type(cause).__name__}: {cause}; use the executor local with one worker")
        ) from cause  # fmt: skip
    return replace(job, parcel=parcel, cell=None)


def opened(job: Job) -> Cell:
    """The cell of a packed job, as this process sees it.

    Raises:
        UnsupportedError: when the process sees another one: its result would pass for what it is not.
        TokentrimError: when the model is not here.
    """
    from tokentrim.runs.cells import locate

    if Path(job.home).is_dir():
        os.chdir(job.home)
    if job.plugins is not None:
        os.environ[LIMIT_VARIABLE] = job.plugins
    registry("strategy")  # the parcel names classes of plugins
    try:
        sent: Cell = pickle.loads(job.parcel)
    except Exception as cause:  # a module that is not here, or whatever importing it raises
        raise UnsupportedError(
            complaint(f"the strategy of {job.where}", f"be importable on {socket.gethostname()}",
                      hint=f"{type(cause).__name__}: {cause}; install there what is installed here")
        ) from cause  # fmt: skip
    spec = sent.model.spec
    source = spec.model if spec.model in registry("model") else str(sent.model.hub or sent.model.folder)
    here = locate(spec.model_copy(update={"model": source}))
    cell = replace(sent, model=replace(here, spec=spec))
    if cell.key != job.key:
        raise UnsupportedError(_mismatch(job, _conditions(cell)))
    return cell


def _conditions(cell: Cell) -> dict[str, str]:
    """What a cell's key depends on and another machine may have otherwise."""
    from tokentrim.runs.cells import versions

    return {
        **{name: value for name, value in versions().items() if name in ("tokentrim", "torch", "transformers")},
        f"task {cell.task.task}": str(registry("task").entry(cell.task.task).origin),
        f"device of {cell.model.name}": cell.model.device,
        f"files of {cell.model.name}": cell.model.fingerprint,
    }


def _mismatch(job: Job, here: Mapping[str, str]) -> str:
    """The complaint about a process that would run another cell than was asked for."""
    names = sorted({*job.conditions, *here})
    differing = [
        f"{name}: {here.get(name)} there, {job.conditions.get(name)} here"
        for name in names
        if here.get(name) != job.conditions.get(name)
    ]
    said = "; ".join(differing) or "the strategy's own parameters"
    return complaint(
        f"a worker on {socket.gethostname()}",
        "have what this comparison was planned with",
        hint=f"different are: {said}. Install the same versions, or name the model's device in the configuration",
    )
