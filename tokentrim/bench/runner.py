"""Running a bench: every strategy in turn beside the untouched model, so that drift hits both alike."""

from __future__ import annotations

import time
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from tokentrim.bench.floor import KernelFloor
from tokentrim.bench.limits import Limits, decode_weight_bytes, measure_limits
from tokentrim.bench.options import BenchOptions
from tokentrim.bench.result import SPREADS, BenchResult, BenchRow
from tokentrim.bench.subject import BenchSubject, environment_of, threads
from tokentrim.contracts.adapter import Layout
from tokentrim.contracts.strategy import Strategy
from tokentrim.counting.costs import Usage
from tokentrim.counting.forecast import plan
from tokentrim.engine.tokens.trace import Trace
from tokentrim.errors import EngineError, complaint
from tokentrim.progress import Progress, Silent, duration
from tokentrim.runs.spread import Spread
from tokentrim.runs.stopwatch import generate, peak_bytes, settled, timed_generate
from tokentrim.session import Session, trim


@dataclass
class _Arm:
    """One strategy (None = untouched) and what was measured of it.

    ``usage`` is what the plan says, or what the warm-up used where counts depend on the data. ``repeats`` holds, by
    field of :class:`BenchRow`, one figure per repeat.
    """

    strategy: Strategy | None
    usage: Usage
    exact: bool
    compile: bool = False
    layer_mean_ratio: float = 1.0
    flops_ratio: float = 1.0
    repeats: dict[str, list[float]] = field(default_factory=dict[str, list[float]])
    peak_bytes: int | None = None
    kernels: KernelFloor | None = None

    def trimmed(self, model: Any) -> AbstractContextManager[Session | None]:
        """The context that this arm runs in."""
        return trimmed(model, self.strategy, compiled=self.compile)

    def note(self, **figures: float) -> None:
        """What one repeat measured."""
        for name, value in figures.items():
            self.repeats.setdefault(name, []).append(value)

    def ratio(self, name: str, other: _Arm, of: str | None = None) -> float:
        """This arm's last figure over another one's, or over one of another name."""
        return self.repeats[name][-1] / other.repeats[of or name][-1]

    def row(self, limits: Limits | None, batch: int, weight_bytes: int) -> BenchRow:
        """What was measured, summarised."""
        usage = self.usage
        return BenchRow(
            strategy=label_of(self.strategy),
            spec=None if self.strategy is None else self.strategy.spec(),
            layer_mean_ratio=self.layer_mean_ratio,
            flops_ratio=self.flops_ratio,
            kv_mean_ratio=usage.kv_mean_ratio,
            implied_speed_up=usage.unpruned().prefill_flops_whole / usage.prefill_flops_whole,
            implied_decode_speed_up=(weight_bytes + batch * usage.unpruned().kv_bytes_mean)
            / (weight_bytes + batch * usage.kv_bytes_mean),
            prefill_limit_seconds=limits and limits.prefill_seconds(usage, batch),
            decode_limit_seconds=limits and limits.decode_seconds(usage, batch),
            peak_bytes=self.peak_bytes,
            **{name: Spread.of(self.repeats[name]) for name in SPREADS},
        )


def label_of(strategy: Strategy | None) -> str:
    """A strategy in tables; None is the model without tokentrim."""
    return "untouched" if strategy is None else strategy.label()


def trimmed(model: Any, strategy: Strategy | None, *, compiled: bool) -> AbstractContextManager[Session | None]:
    """The context that a strategy runs in; None leaves the model untouched."""
    return nullcontext() if strategy is None else trim(model, strategy, compile=compiled)


def run(options: BenchOptions, progress: Progress | None = None) -> BenchResult:
    """Build the model, measure every strategy against it untouched, and summarise.

    After an untimed round of everything, each repeat runs, for each strategy, the untouched model and then the
    strategy: ratios are taken within such pairs, so a machine that slows down slows both. Each member of a pair is
    one ``generate`` of one token and one of ``new_tokens``; contexts are entered and left around each, untimed. The
    kernel floor of the one is taken right before the pair, that of the other right behind it. With
    ``budget_minutes``, there are fewer repeats where the first one shows that they would take longer; the result says
    how many there were.

    Args:
        options: what to measure.
        progress: told what happens.

    Raises:
        ConfigError: when the device is not there, or a strategy comes with line ends to be pruned.
        StrategyError: when a strategy cannot be brought to the budget.
    """
    options.to_dict()  # first, because it may refuse
    told = Silent() if progress is None else progress
    begin = time.monotonic()
    with threads(options.threads), torch.inference_mode(), settled():
        subject = BenchSubject.of(options)
        model, layout, inputs = subject.model, subject.layout, subject.inputs(options.batch)
        untouched, arms = _arms(subject)
        told.start((1 + len(arms)) + options.repeats * len(arms))
        for arm in (untouched, *arms):
            _warm_up(arm, model, layout, inputs, options)
            told.step(f"warm-up of {label_of(arm.strategy)}")
        limits = _limits(model, layout, arms, options) if options.limits else None
        repeats = options.repeats
        for number in range(options.repeats):
            first = time.monotonic()
            for arm in arms:
                _pair(untouched, arm, model, inputs, options.new_tokens)
                told.step(f"repeat {number + 1}, {label_of(arm.strategy)}")
            if number == 0:
                repeats = _affordable(options, begin, time.monotonic() - first)
                told.say(f"a repeat takes {duration(time.monotonic() - first)}: {repeats} of {options.repeats}")
            if number + 1 == repeats:
                break
        options = replace(options, repeats=repeats)
        if limits is not None:  # once more, in case the machine was busy before
            limits = limits.best(_limits(model, layout, arms, options))
        environment = environment_of(options)
        if subject.shape.uncounted:
            environment["uncounted"] = f"the vision tower is not counted: {subject.shape.uncounted}"
        weights = decode_weight_bytes(model, layout)
    return BenchResult(
        command=options.command(),
        options=options.to_dict(),
        environment=environment,
        untouched=untouched.row(limits, options.batch, weights),
        rows=tuple(arm.row(limits, options.batch, weights) for arm in arms),
        limits=limits,
    )


def _affordable(options: BenchOptions, begin: float, each: float) -> int:
    """Repeats that the budget allows, at least the one that has been made; ``each``: its seconds."""
    if options.budget_minutes is None:
        return options.repeats
    left = 60 * options.budget_minutes - (time.monotonic() - begin)
    return min(options.repeats, 1 + max(0, int(left / max(each, 1e-9))))


def _arms(subject: BenchSubject) -> tuple[_Arm, list[_Arm]]:
    """The untouched model, then ``none`` and the strategies, at their budgets."""
    options, arms = subject.options, list[_Arm]()
    for one in subject.strategies():
        found = plan(one, subject.shape, options.n_visual, options.n_text, options.new_tokens)
        arms.append(_Arm(one, found.usage, found.exact, options.compile))
    return _Arm(None, arms[0].usage, exact=True), arms


def _warm_up(arm: _Arm, model: Any, layout: Layout, inputs: dict[str, Tensor], options: BenchOptions) -> None:
    """One untimed run: first calls allocate and choose kernels. It also measures tokens, FLOPs and memory."""
    with arm.trimmed(model) as session:
        generate(model, inputs, options.new_tokens)
        if session is not None:
            report = session.report()
            arm.layer_mean_ratio, arm.flops_ratio = report.layer_mean_ratio, report.flops_ratio
            if not arm.exact:
                arm.usage = widest(arm.usage, session.trace)
    if options.memory:
        with arm.trimmed(model):
            arm.peak_bytes = peak_bytes(model.device, lambda: generate(model, inputs, options.new_tokens))
    arm.kernels = KernelFloor(model, layout, inputs, arm.usage.layer_totals, seed=options.seed)
    arm.kernels.run()


def widest(planned: Usage, trace: Trace) -> Usage:
    """What a batch used, every row counted as its widest, because shorter rows are padded to it."""
    rows, layers = range(len(trace.n_visual)), range(trace.n_layers)
    kept = tuple(max(len(trace.kept(layer, row)) for row in rows) for layer in layers)
    seen = tuple(
        tuple(max(len(trace.cached(layer, step, row)) for row in rows) for layer in layers)
        for step in range(1, trace.steps + 1)
    )
    if trace.evicts:
        return replace(planned, layer_tokens=kept, cached=seen)
    return replace(planned, layer_tokens=kept, cached=(kept,) * trace.steps, seen=seen)


def _limits(model: Any, layout: Layout, arms: list[_Arm], options: BenchOptions) -> Limits:
    """The machine's limits, at the row counts that occur."""
    rows = {options.batch * n for arm in arms for n in arm.usage.layer_totals}
    return measure_limits(model, layout, rows, seed=options.seed)


def _pair(untouched: _Arm, arm: _Arm, model: Any, inputs: dict[str, Tensor], new_tokens: int) -> None:
    """One run of the untouched model, then one of the strategy, each beside its kernel floor, and their ratios."""
    _floor(untouched)
    for member in (untouched, arm):
        with member.trimmed(model) as session:
            first = timed_generate(model, inputs, 1)
            selection = session.report().selection_seconds if session else 0.0
        with member.trimmed(model):
            long = timed_generate(model, inputs, new_tokens)
        member.note(
            prefill_seconds=(first.prefill_seconds + long.prefill_seconds) / 2,  # both prefilled the same prompt
            decode_seconds_per_token=long.decode_seconds_per_token or 0.0,
            selection_seconds=selection,
        )
    _floor(arm)
    for member in (untouched, arm):
        member.note(
            of_kernel_floor=member.ratio("kernel_floor_seconds", member, "prefill_seconds"),
            speed_up=untouched.ratio("prefill_seconds", member),
            decode_ratio=member.ratio("decode_seconds_per_token", untouched),
            kernel_speed_up=untouched.ratio("kernel_floor_seconds", member),
        )


def _floor(member: _Arm) -> None:
    """One run of the member's kernels alone."""
    if member.kernels is None:
        raise EngineError(complaint("a kernel floor", "follow the warm-up", None, "please report this"))
    member.note(kernel_floor_seconds=member.kernels.seconds())
