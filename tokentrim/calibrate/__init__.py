"""Calibration: find a pruning schedule on a task's calibration questions, and write it into a file.

    options = tokentrim.calibrate.options_from(tokentrim.calibrate.GSearch, {"tasks": ["where"]})
    result = tokentrim.calibrate.run(options, "schedule.yaml")

Four searches: ``GSearch`` (the least keep rate per layer that holds the quality), ``PSigmoid`` (the best curve that
meets a budget exactly), ``VTW`` (the first boundary at which the image is no longer missed) and ``FitSearch`` (what
each layer can lose when attention may change by a share). They never look at a test question.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tokentrim.lazy import lazy

if TYPE_CHECKING:
    from tokentrim.calibrate.options import (
        VTW as VTW,
        FitSearch as FitSearch,
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

# So that the command line's help needs neither torch nor optuna.
__getattr__, __dir__, __all__ = lazy(
    __name__,
    {
        "calibrate.options": "FitSearch, GSearch, PSigmoid, VTW, options_from",
        "calibrate.runner": "Calibration, run",
        "config.schedule_file": "MadeFor, Query, ScheduleFile, falling, read_schedule",
    },
)
