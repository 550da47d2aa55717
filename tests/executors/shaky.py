"""A stranger's plugin: a task that can be told to kill its process or to dawdle, and an executor of its own.

Copied into a folder of its own, with an entry point, by the fixture ``plugin``. The folder in the variable ``SHAKY``
holds its orders: while the file ``kill`` is there, one process dies at the last question and takes the file with it;
with ``doom`` every one does; with ``slow`` each question takes a while.
"""

import os
import signal
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import ClassVar

from tokentrim import hookimpl
from tokentrim.contracts.tasks import Task
from tokentrim.executors import Executor, Outcome, run_job
from tokentrim.testbed.tasks import TASKS

WHERE = TASKS["where"]
FATAL = "0005"


class Shaky(Task):
    """The questions of ``where``."""

    name = "shaky"
    metric = WHERE.metric
    max_new_tokens = WHERE.max_new_tokens
    description = WHERE.description

    def samples(self, split, n):
        return WHERE.samples(split, n)

    def score(self, sample, prediction):
        orders = Path(os.environ["SHAKY"])
        if (orders / "slow").exists():
            time.sleep(0.1)
        if sample.id.endswith(FATAL) and self._must_die(orders):
            os.kill(os.getpid(), signal.SIGKILL)
        return WHERE.score(sample, prediction)

    def _must_die(self, orders):
        try:
            (orders / "kill").unlink()
        except FileNotFoundError:
            return (orders / "doom").exists()
        return True


SHAKY = Shaky()


class Pool(Executor):
    """The example of the documentation: the standard library's process pool."""

    name: ClassVar[str] = "pool"
    workers: int = 2

    def run(self, jobs, say):
        with ProcessPoolExecutor(self.workers, mp_context=get_context("spawn")) as pool:
            waiting = {pool.submit(run_job, job): job for job in jobs}
            for future in as_completed(waiting):
                yield Outcome(waiting[future], future.result())


@hookimpl
def tokentrim_tasks(register):
    register("shaky", "shaky:SHAKY", summary="where, with accidents")


@hookimpl
def tokentrim_executors(register):
    register("pool", "shaky:Pool", summary="the standard library's process pool")
