"""Worker processes on one machine: each gets jobs through a pipe, and is replaced when it dies."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, Final

from tokentrim.executors.backlog import Backlog
from tokentrim.executors.base import Job, Outcome, Say
from tokentrim.executors.workplace import Reply, Workplace

_PATIENCE: Final = 5.0  # seconds for a process to end when it is told to


class Crew:
    """Some worker processes. One starts with its first job, and ends with the iterator that :meth:`run` gives."""

    def __init__(self, size: int, max_retries: int, say: Say) -> None:
        self._size = size
        self._retries = max_retries
        self._say = say
        self._gpus = gpus()
        self._workers: list[_Worker] = []

    def run(self, jobs: Sequence[Job]) -> Iterator[Outcome]:
        """Run every job, a lost one again."""
        try:
            yield from self._run(jobs)
        finally:
            for worker in self._workers:
                worker.end()

    def _run(self, jobs: Sequence[Job]) -> Iterator[Outcome]:
        backlog = Backlog(jobs, self._retries, self._say)
        slots: list[_Worker | None] = [None] * self._size
        while True:
            for number, worker in enumerate(slots):
                if worker is None or worker.job is None:
                    slots[number] = self._hand_over(backlog, number, worker)
            busy = {worker.pipe: number for number, worker in enumerate(slots) if worker and worker.job}
            if not busy:
                return
            for pipe in wait(list(busy)):
                number = busy[pipe]  # type: ignore[index]  # wait returns what it was given
                outcome = self._hear(backlog, slots, number)
                if outcome is not None:
                    yield outcome

    def _hand_over(self, backlog: Backlog, number: int, worker: _Worker | None) -> _Worker | None:
        """Give a worker its next job; a slot without a worker gets one when a job waits."""
        job = backlog.take(worker.last if worker else None)
        if job is None:
            return worker
        if worker is None:
            worker = _Worker(self._environment(number))
            self._workers.append(worker)
        worker.give(job)
        return worker

    def _hear(self, backlog: Backlog, slots: list[_Worker | None], number: int) -> Outcome | None:
        """What a worker's pipe says: a reply, or that the worker is gone."""
        worker = slots[number]
        if worker is None or worker.job is None:
            return None
        job = worker.job
        try:
            reply: Reply = worker.pipe.recv()
        except (EOFError, OSError):
            slots[number] = None
            self._workers.remove(worker)
            return backlog.lost(job, worker.end())
        worker.last, worker.job = job, None
        return reply.outcome(job)

    def _environment(self, number: int) -> dict[str, str]:
        """Variables of a worker: its GPU, or its share of the cores."""
        if self._gpus:
            return {"CUDA_VISIBLE_DEVICES": self._gpus[number % len(self._gpus)]}
        return {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(max(1, cores() // self._size)))}


class _Worker:
    """One process, with the job that it runs and the one before."""

    def __init__(self, environment: dict[str, str]) -> None:
        # A forked process would share locks and CUDA's state with this one.
        context = multiprocessing.get_context("spawn")
        self.pipe: Connection
        self.pipe, theirs = context.Pipe()
        self.process: BaseProcess = context.Process(target=_serve, args=(theirs, environment), daemon=True)
        self.process.start()
        theirs.close()  # so that the pipe ends with the process
        self.job: Job | None = None
        self.last: Job | None = None

    def give(self, job: Job) -> None:
        """Let it run a job. A process that is gone is noticed when its pipe is read."""
        self.job = job
        try:
            self.pipe.send(job)
        except OSError:
            return

    def end(self) -> str:
        """End the process; how it ended, as text."""
        self.pipe.close()
        died = self.process.exitcode is not None or not self.process.is_alive()
        if not died:
            self.process.join(0.5)  # a dying process closes its pipe before it is gone
            died = self.process.exitcode is not None
        if not died:
            self.process.terminate()
            self.process.join(_PATIENCE)
            if self.process.exitcode is None:
                self.process.kill()
                self.process.join()
        code = self.process.exitcode or 0
        how = f"by {signal.Signals(-code).name}" if code < 0 else f"with exit code {code}"
        return f"process {self.process.pid} ended {how}"


def _serve(pipe: Connection, environment: dict[str, str]) -> None:
    """A worker's life: jobs in, replies out, until the pipe or the process that began it ends."""
    os.environ.update(environment)  # before torch is imported
    sys.stdout = sys.stderr  # what plugins print is no result
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that began this one
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_follow, args=(parent.sentinel,), daemon=True).start()
    place = Workplace()
    while True:
        try:
            job: Any = pipe.recv()
            pipe.send(place.attempt(job))
        except (EOFError, OSError):
            return


def _follow(sentinel: int) -> None:
    """End this process when its parent is gone, however it went."""
    wait([sentinel])
    os._exit(1)


def gpus() -> list[str]:
    """The GPUs that this process may use, as ``CUDA_VISIBLE_DEVICES`` names them."""
    import torch

    named = [name.strip() for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    count = torch.cuda.device_count()
    return named[:count] if named else [str(number) for number in range(count)]


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
