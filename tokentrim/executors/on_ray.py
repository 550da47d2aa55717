"""The executor ``ray``: workers on any number of machines, found, placed and watched by Ray."""

from __future__ import annotations

import logging
import os
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar, Final

from pydantic import Field

from tokentrim.errors import EngineError, UnsupportedError, complaint
from tokentrim.executors.backlog import Backlog
from tokentrim.executors.base import MOST_RETRIES, Executor, Job, Outcome, Say
from tokentrim.executors.workplace import Reply, Workplace

_STORE: Final = 80 << 20  # bytes of Ray's object store: results are small, and the default is a third of the memory
_LOOPBACK: Final = "127.0.0.1"
_WAIT: Final = 60.0  # seconds without a worker before that is said
_LONGEST_CAUSE: Final = 600  # characters


class RayExecutor(Executor):
    """Cells on the workers of a Ray cluster, each of which keeps its model from cell to cell.

    Ray gives every worker its own cores and GPUs. A worker loads plugins itself, so that its machine needs the same
    packages as this one; it refuses a cell whose versions or model files differ. Results come back to this process,
    which alone writes: machines need no folder in common, except for the models.
    """

    name: ClassVar[str] = "ray"
    address: str | None = Field(
        default=None,
        description="of the cluster; by default the one that RAY_ADDRESS names or that runs on this machine, else one "
        "on this machine alone, which ends with the run",
    )
    workers: int | None = Field(default=None, ge=1, description="by default as many as the cluster has room for")
    num_cpus: float = Field(default=1, gt=0, description="cores of each worker, also the number of its threads")
    num_gpus: float | None = Field(
        default=None, ge=0, description="GPUs of each worker; by default 1 where a model runs on a GPU, else 0"
    )
    max_retries: int = Field(
        default=2, ge=0, le=MOST_RETRIES, description="how often a cell is run again whose worker died"
    )

    def prepare(self) -> None:
        """Import Ray.

        Raises:
            UnsupportedError: when it is not installed.
        """
        _ray()

    def run(self, jobs: Sequence[Job], say: Say) -> Iterator[Outcome]:
        """Run every job."""
        if not jobs:
            return
        ray = _ray()
        needs = {"CPU": self.num_cpus, "GPU": self._gpus(jobs)}
        with connected(ray, self.address):
            room = self.workers or _room(ray, needs)
            crew = _Actors(ray, needs, self.max_retries, say)
            try:
                yield from crew.run(jobs, min(room, len(jobs)))
            finally:
                crew.end()

    def _gpus(self, jobs: Sequence[Job]) -> float:
        """GPUs of each worker."""
        if self.num_gpus is not None:
            return self.num_gpus
        return 1.0 if any(job.device == "cuda" for job in jobs) else 0.0


class _Actors:
    """Ray actors, one job each at a time; one that died is replaced."""

    def __init__(self, ray: Any, needs: Mapping[str, float], max_retries: int, say: Say) -> None:
        self._ray = ray
        self._needs = needs
        self._retries = max_retries
        self._say = say
        self._failed_starts = 0
        # What an actor answers -> (the actor, its job; None while it starts).
        self._busy: dict[Any, tuple[Any, Job | None]] = {}
        # Ray itself never runs a job twice here: the backlog does, and says so.
        options = {"num_cpus": needs["CPU"], "num_gpus": needs["GPU"], "max_restarts": 0, "max_task_retries": 0,
                   "scheduling_strategy": "SPREAD"}  # fmt: skip
        self._kind: Any = ray.remote(Worker).options(**options)

    def run(self, jobs: Sequence[Job], size: int) -> Iterator[Outcome]:
        """Run every job on ``size`` actors, a lost one again."""
        backlog = Backlog(jobs, self._retries, self._say)
        for _ in range(size):
            self._start()
        while self._busy:
            ready, _ = self._ray.wait(list(self._busy), num_returns=1, timeout=_WAIT)
            if not ready and all(job is None for _, job in self._busy.values()):
                self._say(f"waiting: Ray has started no worker with {_needed(self._needs)} for {_WAIT:.0f} s")
            for answer in ready:
                outcome = self._hear(answer, backlog)
                if outcome is not None:
                    yield outcome
                if not len(backlog) and not self._at_work():
                    return

    def end(self) -> None:
        """End all actors, those at work too."""
        for actor, _ in self._busy.values():
            self._ray.kill(actor)
        self._busy.clear()

    def _at_work(self) -> bool:
        return any(job is not None for _, job in self._busy.values())

    def _start(self) -> None:
        actor = self._kind.remote()
        self._busy[actor.ready.remote()] = (actor, None)

    def _hear(self, answer: Any, backlog: Backlog) -> Outcome | None:
        """An answer of an actor, or that it is gone; then its next job."""
        errors = self._ray.exceptions
        actor, job = self._busy.pop(answer)
        outcome: Outcome | None = None
        try:
            reply: Reply | None = self._ray.get(answer)
        except errors.RayTaskError as cause:
            if job is None:
                raise self._cannot_start(cause) from cause
            outcome = Outcome(job, None, _short(cause))
        except errors.RayError as cause:
            return self._replace(actor, job, cause, backlog)
        else:
            self._failed_starts = 0
            if job is not None and reply is not None:
                outcome = reply.outcome(job)
        following = backlog.take(job)
        if following is None:
            self._ray.kill(actor)
        else:
            self._busy[actor.run.remote(following)] = (actor, following)
        return outcome

    def _replace(self, actor: Any, job: Job | None, cause: Exception, backlog: Backlog) -> Outcome | None:
        """Start another actor for one that died, and put its job back."""
        self._ray.kill(actor)  # it may be alive and out of reach
        if job is None:
            self._failed_starts += 1
            if self._failed_starts > self._retries:
                raise self._cannot_start(cause) from cause
        outcome = None if job is None else backlog.lost(job, _short(cause))
        if len(backlog):
            self._start()
        return outcome

    def _cannot_start(self, cause: Exception) -> EngineError:
        return EngineError(
            complaint("a Ray worker", "start", hint=f"{_short(cause)}. Is tokentrim installed on every machine?")
        )


class Worker:
    """The actor: one process with its model."""

    def __init__(self) -> None:
        self._place = Workplace()

    def ready(self) -> None:
        """Answers once the process runs."""

    def run(self, job: Job) -> Reply:
        """Run a job."""
        return self._place.attempt(job)


def _ray() -> Any:
    """The module ``ray``.

    Raises:
        UnsupportedError: when it is not installed.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # Ray would report over the network what runs here
    # What Ray is about to do by itself: leave the GPUs of a worker that asked for none alone.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    try:
        import ray
    except ImportError as cause:
        raise UnsupportedError(
            complaint("the executor 'ray'", "find Ray", hint="install it: pip install 'tokentrim-vlm[ray]'")
        ) from cause
    return ray


@contextmanager
def connected(ray: Any, address: str | None) -> Generator[None, None, None]:
    """A connection to a cluster; one that the caller has is used and left as it is.

    Args:
        ray: the module.
        address: of the cluster; None for one that is there, or else one on this machine for the time of the context.

    Raises:
        UnsupportedError: when no cluster answers at the address, or none can be started.
    """
    if ray.is_initialized():
        yield
        return
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    try:
        try:
            ray.init(address=address or "auto", **quiet)
        except ConnectionError:
            if address is not None or "RAY_ADDRESS" in os.environ:
                raise
            ray.init(
                address="local", include_dashboard=False, object_store_memory=_STORE, _node_ip_address=_LOOPBACK,
                **quiet,
            )  # fmt: skip
    except Exception as cause:  # Ray raises many things, down to a plain Exception
        raise UnsupportedError(
            complaint("a Ray cluster", f"answer at {address or os.environ.get('RAY_ADDRESS') or 'this machine'}",
                      hint=_short(cause))
        ) from cause  # fmt: skip
    try:
        yield
    finally:
        ray.shutdown()


def _room(ray: Any, needs: Mapping[str, float]) -> int:
    """How many workers the cluster's machines hold together.

    Raises:
        UnsupportedError: when none has room for one.
    """
    machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    room = sum(
        min(int(machine.get(name, 0) // amount) for name, amount in needs.items() if amount) for machine in machines
    )
    if room < 1:
        have = [{name: machine.get(name, 0) for name in needs} for machine in machines]
        raise UnsupportedError(
            complaint("a machine of the Ray cluster", f"have {_needed(needs)} for a worker", have,
                      "ask for less with num_cpus and num_gpus, or set 'workers' where the cluster is yet to grow")
        )  # fmt: skip
    return room


def _needed(needs: Mapping[str, float]) -> str:
    return " and ".join(f"{amount:g} {name}" for name, amount in needs.items() if amount)


def _short(cause: BaseException) -> str:
    """A message of Ray's on one line, without the identifiers that it lists on lines of their own."""
    lines = [line for line in str(cause).splitlines() if not line.startswith("\t")]
    return (" ".join(" ".join(lines).split()) or type(cause).__name__)[:_LONGEST_CAUSE]
