"""The strategies that come with tokentrim: one published method per file, registered like a stranger's."""

from tokentrim import hookimpl
from tokentrim.hookspecs import Register


@hookimpl
def tokentrim_strategies(register: Register) -> None:
    """Register every strategy of this package by name; nothing is imported until a name is asked for."""

    def add(name: str, target: str, stage: str, summary: str) -> None:
        register(name, f"tokentrim_strategies.{target}", stage=stage, summary=summary)

    add("none", "none:NoPruning", "none", "keep everything: the baseline")
    add("random", "random_control:Random", "prefill", "keep random tokens: the control that any method has to beat")
    add("uniform", "uniform:Uniform", "prefill", "keep every n-th token of the grid: the second control")
    add("pool", "pool:Pool", "input", "average neighbouring tokens before the language model")
    add("fastv", "fastv:FastV", "prefill", "FastV: rank once, after layer k, by attention to the last prompt token")
    add("pvtp", "pvtp:PVTP", "prefill", "the spatial half of ST3: drop a share every few layers")
    add("vta", "vta:VTA", "decode", "the temporal half of ST3: fewer visual entries with every generated token")
    add("st3", "st3:ST3", "prefill", "ST3: pvtp and vta together")
    add("replay", "replay:Replay", "prefill", "apply the decisions that a saved trace recorded")
    add("oracle", "oracle:Oracle", "prefill", "keep what the task says is needed: an upper bound, testbed only")
    add("text-only", "text_only:TextOnly", "input", "drop every visual token: what the text alone gives away")
