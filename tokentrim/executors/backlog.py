"""The jobs that wait for a worker, and those that lost theirs."""

from __future__ import annotations

from collections.abc import Sequence

from tokentrim.executors.base import Job, Outcome, Say

_LONGEST_CAUSE = 300  # characters


class Backlog:
    """Jobs in their order, handed out so that a worker seldom changes its model."""

    def __init__(self, jobs: Sequence[Job], max_retries: int, say: Say) -> None:
        self._jobs = list(jobs)
        self._retries = max_retries
        self._lost: dict[str, int] = {}
        self._say = say

    def __len__(self) -> int:
        """Jobs that wait."""
        return len(self._jobs)

    def take(self, last: Job | None = None) -> Job | None:
        """The next job for a worker that ran ``last``; None when none waits."""
        if not self._jobs:
            return None
        if last is None:
            return self._jobs.pop(0)
        ranked = [(job.model != last.model, job.task != last.task, place) for place, job in enumerate(self._jobs)]
        return self._jobs.pop(min(ranked)[-1])

    def lost(self, job: Job, cause: str) -> Outcome | None:
        """Take back the job of a worker that died. Its outcome when that happened too often, else None."""
        text = " ".join(cause.split())[:_LONGEST_CAUSE].rstrip(". ")
        times = self._lost[job.key] = self._lost.get(job.key, 0) + 1
        if times > self._retries:
            return Outcome(job, None, f"its worker died {times} times, the last one so: {text}")
        self._say(f"lost: {job.where}: {text}; it is run again, attempt {times + 1} of {self._retries + 1}")
        self._jobs.insert(0, job)
        return None
