"""The executor ``local``: this process, or several on this machine."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import ClassVar, Final

from pydantic import Field

from tokentrim.errors import UnsupportedError, complaint
from tokentrim.executors.base import MOST_RETRIES, Executor, Job, Outcome, Say
from tokentrim.executors.processes import Crew, cores
from tokentrim.executors.workplace import Workplace

_PER_CORE: Final = 16


class LocalExecutor(Executor):
    """Cells one after the other in this process, or in several processes beside each other.

    With GPUs every process has one of them to itself, as long as there are enough. Without, the processes share the
    processor's cores evenly, unless ``OMP_NUM_THREADS`` says otherwise.
    """

    name: ClassVar[str] = "local"
    workers: int = Field(default=1, ge=1, description="processes; with 1 the cells are run in the calling one")
    max_retries: int = Field(
        default=2, ge=0, le=MOST_RETRIES, description="how often a cell is run again whose process died"
    )

    def prepare(self) -> None:
        """Look at the machine.

        Raises:
            UnsupportedError: when it is asked for more processes than it could run.
        """
        most = _PER_CORE * cores()
        if self.workers > most:
            raise UnsupportedError(
                complaint("workers of executor 'local'", f"be at most {most} here, {_PER_CORE} for each core",
                          self.workers, "each loads the model for itself, and more only wait for each other")
            )  # fmt: skip

    @property
    def in_process(self) -> bool:
        """Whether there is one worker."""
        return self.workers == 1

    def run(self, jobs: Sequence[Job], say: Say) -> Iterator[Outcome]:
        """Run every job."""
        if self.in_process:
            place = Workplace()
            for job in jobs:
                yield place.attempt(job).outcome(job)
            return
        yield from Crew(min(self.workers, len(jobs)), self.max_retries, say).run(jobs)
