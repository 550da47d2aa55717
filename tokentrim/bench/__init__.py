"""Bench: what pruning saves in seconds and bytes, on random weights of a real geometry, against the untouched model.

    tokentrim bench --geometry scaled --strategies st3,fastv,random

Accuracy needs trained weights; speed does not. So this measures with weights that are made up in memory.
"""

from tokentrim.bench.floor import KernelFloor
from tokentrim.bench.geometry import GEOMETRIES, Geometry
from tokentrim.bench.limits import Limits
from tokentrim.bench.options import BenchOptions, split_strategies
from tokentrim.bench.render import markdown
from tokentrim.bench.result import BenchResult, BenchRow
from tokentrim.bench.runner import run
from tokentrim.runs.spread import Spread

__all__ = [
    "GEOMETRIES",
    "BenchOptions",
    "BenchResult",
    "BenchRow",
    "Geometry",
    "KernelFloor",
    "Limits",
    "Spread",
    "markdown",
    "run",
    "split_strategies",
]
