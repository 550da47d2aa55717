"""The comparison: many strategies on the same questions, with what each costs and what each loses.

    summary = tokentrim.compare.run("compare.yaml", "runs/mine")

Results are one file per cell (method, budget, task, model), so a run that was stopped goes on where it stopped.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from tokentrim.compare.config import CompareConfig as CompareConfig, load_compare as load_compare
    from tokentrim.compare.runner import run as run
    from tokentrim.compare.summary import Summary as Summary

# Lazy, so that the command line's help needs neither torch nor scipy.
_HOME: Final = {"CompareConfig": "config", "load_compare": "config", "run": "runner", "Summary": "summary"}

__all__ = ["CompareConfig", "Summary", "load_compare", "run"]


def __getattr__(name: str) -> Any:
    """Import a public name on first use."""
    if name not in _HOME:
        raise AttributeError(f"module 'tokentrim.compare' has no attribute {name!r}")
    return getattr(importlib.import_module(f"tokentrim.compare.{_HOME[name]}"), name)
