"""Executors: ways to carry out the cells of a comparison, in this process, in several, or on a cluster.

``base.py`` holds what an executor is; ``local.py`` and ``on_ray.py`` are the two that come along. The names are
imported on first use, so that registering an executor costs nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tokentrim.lazy import lazy

if TYPE_CHECKING:
    from tokentrim.executors.base import Executor as Executor, Job as Job, Outcome as Outcome
    from tokentrim.executors.choosing import (
        choose as choose,
        executor_from as executor_from,
        parse_options as parse_options,
    )
    from tokentrim.executors.workplace import run_job as run_job

# So that registering an executor costs nothing.
__getattr__, __dir__, __all__ = lazy(
    __name__,
    {
        "executors.base": "Executor, Job, Outcome",
        "executors.choosing": "choose, executor_from, parse_options",
        "executors.workplace": "run_job",
    },
)
