"""The comparison: many strategies on the same questions, with what each costs and what each loses.

    summary = tokentrim.compare.run("compare.yaml", "runs/mine")

Results are one file per cell (method, budget, task, model), so a run that was stopped goes on where it stopped.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tokentrim.lazy import lazy

if TYPE_CHECKING:
    from tokentrim.compare.config import CompareConfig as CompareConfig, load_compare as load_compare
    from tokentrim.compare.runner import run as run
    from tokentrim.compare.summary import Summary as Summary

# So that the command line's help needs neither torch nor scipy.
__getattr__, __dir__, __all__ = lazy(
    __name__,
    {
        "compare.config": "CompareConfig, load_compare",
        "compare.runner": "run",
        "compare.summary": "Summary",
    },
)
