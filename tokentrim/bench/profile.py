"""Where the time goes: each phase of an answer by the kind of operation, for every strategy and the untouched model."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final, Literal

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile, record_function

from tokentrim.bench.options import BenchOptions
from tokentrim.bench.runner import label_of, trimmed
from tokentrim.bench.subject import BenchSubject, threads
from tokentrim.contracts.adapter import Layout
from tokentrim.contracts.strategy import Strategy
from tokentrim.progress import Progress, Silent
from tokentrim.runs.stopwatch import generate

Phase = Literal["vision", "prefill", "decode"]

PHASES: Final[tuple[Phase, ...]] = ("vision", "prefill", "decode")
_MARK = "tokentrim."
KINDS: Final[Mapping[str, tuple[str, ...]]] = {
    "matrix products": ("mm", "addmm", "bmm", "baddbmm", "mv", "addmv", "linear", "convolution"),
    "attention": ("scaled_dot_product", "flash", "efficient_attention", "softmax"),
    "copies": ("copy_", "cat", "index", "gather", "scatter", "clone", "fill_", "zero_", "sort", "topk"),
}
"""Kind -> what names of its operations contain, the first kind that fits; all others are "the rest"."""
REST: Final = "the rest"
HOST: Final = "between operations"


@dataclass(frozen=True)
class Profile:
    """One phase of one strategy's answer.

    Attributes:
        strategy: label; "untouched" for the model without tokentrim.
        phase: vision (the tower), prefill (the rest of the first forward) or decode (one step).
        seconds: of the phase as the host sees it, under the profiler, which itself costs time per operation.
        kinds: kind of operation -> seconds; what is missing to ``seconds`` passes between operations.
        selection: share of the phase that selecting takes.
    """

    strategy: str
    phase: Phase
    seconds: float
    kinds: dict[str, float]
    selection: float

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)


def run_profile(options: BenchOptions, progress: Progress | None = None) -> list[Profile]:
    """Profile one answer under every strategy, after one that warms up.

    Args:
        options: as of a bench.
        progress: told what happens.

    Raises:
        ConfigError: when the device is not there.
        StrategyError: when a strategy cannot be brought to the budget.
    """
    found: list[Profile] = []
    told = Silent() if progress is None else progress
    with threads(options.threads), torch.inference_mode():
        subject = BenchSubject.of(options)
        inputs = subject.inputs(options.batch)
        arms: list[Strategy | None] = [None, *dict.fromkeys(subject.strategies())]
        told.start(len(arms))
        for strategy in arms:
            found += _profiled(subject, inputs, strategy)
            told.step(label_of(strategy))
    return found


def _profiled(subject: BenchSubject, inputs: dict[str, Tensor], strategy: Strategy | None) -> list[Profile]:
    model, options = subject.model, subject.options
    with trimmed(model, strategy, compiled=options.compile):
        generate(model, inputs, options.new_tokens)
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # or the profiler reports its own start and end on stderr
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if model.device.type == "cuda" else [])]
    # Forwards are marked outside of all that a context installs, the tower inside the first of them.
    taken_off = _marked(model, lambda first: "prefill" if first else "decode")
    taken_off += _marked(_tower(subject.layout), lambda first: "vision")
    try:
        with trimmed(model, strategy, compiled=options.compile) as session, profile(activities=activities) as profiler:
            generate(model, inputs, options.new_tokens)
    finally:
        for remove in taken_off:
            remove()
    selecting = 0.0
    if session is not None:
        report = session.report()
        spent = report.prefill_seconds + report.decode_seconds
        selecting = report.selection_seconds / spent if spent else 0.0
    return _summary(profiler.events() or (), label_of(strategy), options.new_tokens - 1, selecting)


def _tower(layout: Layout) -> nn.Module:
    """The module, right below the entry, that holds the tower's blocks."""
    block = layout.vision_attentions[0]
    return next(module for module in layout.entry.children() if any(one is block for one in module.modules()))


def _marked(module: Any, phase: Callable[[bool], str]) -> list[Callable[[], None]]:
    """Name every forward of ``module`` in the profile; returns what undoes it."""
    running: list[Any] = []
    calls = 0

    def before(*_: Any) -> None:
        nonlocal calls
        calls += 1
        running.append(record_function(_MARK + phase(calls == 1)))
        running[-1].__enter__()

    def after(*_: Any) -> None:
        running.pop().__exit__(None, None, None)

    handles = (module.register_forward_pre_hook(before, prepend=True), module.register_forward_hook(after))
    return [handle.remove for handle in handles]


def _summary(events: Iterable[Any], label: str, steps: int, selecting: float) -> list[Profile]:
    """Seconds by phase and kind; a decode step is the mean of ``steps``."""
    every = list(events)
    spans = {
        phase: [(e.time_range.start, e.time_range.end) for e in every if e.name == _MARK + phase] for phase in PHASES
    }
    kinds: dict[Phase, dict[str, float]] = {phase: dict.fromkeys((*KINDS, REST), 0.0) for phase in PHASES}
    for event in every:
        if not event.name.startswith("aten::"):
            continue
        start = event.time_range.start
        # The tower's span may lie inside the prefill's, and is asked first.
        phase: Phase | None = next((one for one in PHASES if any(a <= start < b for a, b in spans[one])), None)
        if phase is not None:
            kinds[phase][_kind(event.name.removeprefix("aten::"))] += _own_seconds(event)
    length = {phase: sum(b - a for a, b in spans[phase]) / 1e6 for phase in PHASES}
    # generate may call the tower before the first forward.
    inside = [(a, b) for a, b in spans["vision"] if any(c <= a < d for c, d in spans["prefill"])]
    length["prefill"] -= sum(b - a for a, b in inside) / 1e6
    parts = {"vision": 1, "prefill": 1, "decode": max(steps, 1)}
    return [
        Profile(
            label, phase, length[phase] / parts[phase],
            {kind: seconds / parts[phase] for kind, seconds in kinds[phase].items()}, selecting,
        )
        for phase in PHASES
        if spans[phase]
    ]  # fmt: skip


def _own_seconds(event: Any) -> float:
    """Seconds of an operation itself: on its device where kernels run on one."""
    return (event.self_device_time_total or event.self_cpu_time_total) / 1e6


def _kind(name: str) -> str:
    words = name.lstrip("_")
    for kind, parts in KINDS.items():
        if any(words == part or (len(part) > 3 and part in words) for part in parts):
            return kind
    return REST


def _milliseconds(seconds: float) -> str:
    value = 1e3 * seconds
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def profile_markdown(options: BenchOptions, profiles: Sequence[Profile], where: Mapping[str, Any]) -> str:
    """A table for a page of documentation."""
    names = (*KINDS, REST)
    lines = [
        f"{options.geometry}, {options.tokens()}, batch {options.batch}; {where['device']}, {where['dtype']}, torch "
        f"{where['versions']['torch']}; one answer of {options.new_tokens} tokens each, under torch's profiler.",
        "",
        f"| phase | strategy | ms | {' | '.join(names)} | {HOST} |",
        f"| --- | --- |{' ---: |' * (len(names) + 2)}",
    ]
    for phase in PHASES:
        for one in profiles:
            if one.phase == phase:
                rest = one.seconds - sum(one.kinds.values())
                shares = [*one.kinds.values(), rest]
                cells = [f"{_milliseconds(seconds)} ({seconds / one.seconds:.0%})" for seconds in shares]
                lines.append(f"| {phase} | {one.strategy} | {_milliseconds(one.seconds)} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"
