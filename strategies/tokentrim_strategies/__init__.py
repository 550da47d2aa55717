"""The strategies that come with tokentrim: one published method per file, registered like a stranger's."""

from typing import Final

from tokentrim import hookimpl
from tokentrim.hookspecs import Register

# name, target in this package, stage (as in the class), summary
_STRATEGIES: Final = (
    ("none", "none:NoPruning", "none", "keep everything: the baseline"),
    ("random", "random_control:Random", "prefill", "keep random tokens: the control that any method has to beat"),
    ("uniform", "uniform:Uniform", "prefill", "keep evenly spaced tokens of the grid: the second control"),
    ("pool", "pool:Pool", "input", "average neighbouring tokens before the language model"),
    ("fastv", "fastv:FastV", "prefill", "FastV: one cut after layer k, by attention of the last prompt token"),
    ("pvtp", "pvtp:PVTP", "prefill", "the spatial half of ST3: drop a share every few layers"),
    ("vta", "vta:VTA", "decode", "the temporal half of ST3: fewer visual entries with every generated token"),
    ("st3", "st3:ST3", "prefill", "ST3: pvtp and vta together"),
    ("layer-counts", "layer_counts:LayerCounts", "prefill", "a calibrated keep rate per layer (G-Search, P-Sigmoid)"),
    ("replay", "replay:Replay", "prefill", "apply the decisions that a saved trace recorded"),
    ("oracle", "oracle:Oracle", "prefill", "keep what the task says is needed: an upper bound, testbed only"),
    ("text-only", "text_only:TextOnly", "prefill", "drop every visual token: what the text alone gives away"),
)


@hookimpl
def tokentrim_strategies(register: Register) -> None:
    """Register every strategy of this package by name; nothing is imported until a name is asked for."""
    for name, target, stage, summary in _STRATEGIES:
        register(name, f"tokentrim_strategies.{target}", stage=stage, summary=summary)
