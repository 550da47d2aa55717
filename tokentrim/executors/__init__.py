"""Executors: ways to carry out the cells of a comparison, in this process, in several, or on a cluster.

``base.py`` holds what an executor is; ``local.py`` and ``on_ray.py`` are the two that come along. The names are
imported on first use, so that registering an executor costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from tokentrim.executors.base import Executor as Executor, Job as Job, Outcome as Outcome
    from tokentrim.executors.choosing import (
        choose as choose,
        executor_from as executor_from,
        parse_options as parse_options,
    )
    from tokentrim.executors.workplace import run_job as run_job

_HOME: Final = {
    "Executor": "base",
    "Job": "base",
    "Outcome": "base",
    "choose": "choosing",
    "executor_from": "choosing",
    "parse_options": "choosing",
    "run_job": "workplace",
}

__all__ = ["Executor", "Job", "Outcome", "choose", "executor_from", "parse_options", "run_job"]


def __getattr__(name: str) -> Any:
    """A public name, imported on first use."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
