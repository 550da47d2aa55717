"""What an executor is given, what it gives back, and what it must be."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Final, TypeAlias

from pydantic import BaseModel, ConfigDict

if TYPE_CHECKING:
    from tokentrim.runs.cells import Cell
    from tokentrim.runs.results import CellResult

MOST_RETRIES: Final = 100
"""A cell that has ended so many processes will end the next one, too."""
Say: TypeAlias = Callable[[str], None]


@dataclass(frozen=True)
class Job:
    """One cell to run, as plain data that another process, on another machine, can be handed.

    Attributes:
        key: hash of all that may change the cell's result; the same wherever the job is run, or it is refused.
        where: the cell as text for messages.
        model: name of its model.
        task: name of its task; jobs of one model and task share what is prepared for them.
        device: kind of device that it runs on, ``cpu`` or ``cuda``.
        home: folder that relative paths in it begin at.
        plugins: the value of ``TOKENTRIM_PLUGINS``; None where it is not set.
        conditions: what its key depends on and another machine may have otherwise, by name.
        parcel: the cell, pickled: plugins must be loaded before it is opened. Empty while ``cell`` is there.
        cell: the cell itself; None once the job is packed for another process.
    """

    key: str
    where: str
    model: str
    task: str
    device: str
    home: str
    plugins: str | None
    conditions: Mapping[str, str]
    parcel: bytes = field(default=b"", repr=False)
    cell: Cell | None = field(default=None, repr=False, compare=False)


@dataclass(frozen=True)
class Outcome:
    """What became of a job.

    Attributes:
        job: the job.
        result: its result; None where there is none.
        cause: why there is none. The cell then counts as failed.
    """

    job: Job
    result: CellResult | None
    cause: str | None = None


class Executor(BaseModel, ABC):
    """A way to carry out the cells of a comparison. Its fields are its options.

    Derive from it, set ``name``, implement :meth:`run` with :func:`tokentrim.executors.run_job`, and register the
    class in the hook ``tokentrim_executors``.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
    name: ClassVar[str]

    @property
    def in_process(self) -> bool:
        """Whether it runs the cells in the calling process, one after the other.

        Only then do its jobs hold the cell itself, are their times comparable, and may ``torchrun`` share a cell's
        questions between processes.
        """
        return False

    def prepare(self) -> None:
        """Raise UnsupportedError where the executor cannot work, before anything is written.

        A library that is not installed is noticed here, and imported no earlier.
        """

    @abstractmethod
    def run(self, jobs: Sequence[Job], say: Say) -> Iterator[Outcome]:
        """Run every job, and yield one outcome per job as soon as it is there, in any order.

        A process that dies is no outcome: its job is to be run again, some number of times. What the run began must
        have ended when the iterator is closed, also half way.

        Args:
            jobs: the cells that are not finished, by model, then task.
            say: prints one line about what happens beside.

        Raises:
            TokentrimError: what a job raises ends the run; outcomes that were yielded are kept.
        """

    def spec(self) -> dict[str, Any]:
        """Its name and the options that were set."""
        return {"name": self.name, **self.model_dump(mode="json", exclude_unset=True)}
