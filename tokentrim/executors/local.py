"""The executor ``local``: this process, or several on this machine."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import ClassVar

from pydantic import Field

from tokentrim.executors.base import Executor, Job, Outcome, Say
from tokentrim.executors.processes import Crew
from tokentrim.executors.workplace import Workplace


class LocalExecutor(Executor):
    """Cells one after the other in this process, or in several processes beside each other.

    With GPUs every process has one of them to itself, as long as there are enough. Without, the processes share the
    processor's cores evenly, unless ``OMP_NUM_THREADS`` says otherwise.
    """

    name: ClassVar[str] = "local"
    workers: int = Field(default=1, ge=1, description="processes; with 1 the cells are run in the calling one")
    max_retries: int = Field(default=2, ge=0, description="how often a cell is run again whose process died")

    @property
    def in_process(self) -> bool:
        """Whether there is one worker."""
        return self.workers == 1

    def run(self, jobs: Sequence[Job], say: Say) -> Iterator[Outcome]:
        """Run every job."""
        if self.in_process:
            place = Workplace()
            for job in jobs:
                yield Outcome(job, place.run(job))
            return
        yield from Crew(min(self.workers, len(jobs)), self.max_retries, say).run(jobs)
