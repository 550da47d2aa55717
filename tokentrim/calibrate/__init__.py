"""Calibration: find a pruning schedule on a task's calibration questions, and write it into a file.

    options = tokentrim.calibrate.options_from(tokentrim.calibrate.GSearch, {"tasks": ["where"]})
    result = tokentrim.calibrate.run(options, "schedule.yaml")

Three searches: ``GSearch`` (the least keep rate per layer that holds the quality), ``PSigmoid`` (the best curve that
meets a budget exactly) and ``VTW`` (the first boundary at which the image is no longer missed). They never look at a
test question.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from tokentrim.calibrate.options import (
        VTW as VTW,
        GSearch as GSearch,
        PSigmoid as PSigmoid,
        options_from as options_from,
    )
    from tokentrim.calibrate.runner import Calibration as Calibration, run as run
    from tokentrim.config.schedule_file import (
        MadeFor as MadeFor,
        Query as Query,
        ScheduleFile as ScheduleFile,
        falling as falling,
        read_schedule as read_schedule,
    )

# Lazy, so that the command line's help needs neither torch nor optuna.
_HOME: Final = {
    "Calibration": "runner",
    "GSearch": "options",
    "MadeFor": "schedule_file",
    "PSigmoid": "options",
    "Query": "schedule_file",
    "ScheduleFile": "schedule_file",
    "VTW": "options",
    "falling": "schedule_file",
    "options_from": "options",
    "read_schedule": "schedule_file",
    "run": "runner",
}

__all__ = ["VTW", "Calibration", "GSearch", "MadeFor", "PSigmoid", "Query", "ScheduleFile", "falling", "options_from",
           "read_schedule", "run"]  # fmt: skip


def __getattr__(name: str) -> Any:
    """Import a public name on first use."""
    if name not in _HOME:
        raise AttributeError(f"module 'tokentrim.calibrate' has no attribute {name!r}")
    return getattr(importlib.import_module(f"tokentrim.calibrate.{_HOME[name]}"), name)
