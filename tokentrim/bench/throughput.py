"""Throughput: what pruning buys a server, the largest batch that fits into a memory and tokens per second at it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import ClassVar, Final

import torch

from tokentrim.bench.options import BenchOptions
from tokentrim.bench.result import StoredBench
from tokentrim.bench.runner import label_of, trimmed
from tokentrim.bench.subject import BenchSubject, environment_of, threads
from tokentrim.contracts.strategy import Strategy
from tokentrim.errors import ConfigError, complaint
from tokentrim.progress import Progress, Silent
from tokentrim.runs.spread import Spread
from tokentrim.runs.stopwatch import generate, peak_bytes, settled, timed_generate

COLUMNS: Final = ("strategy", "largest batch", "peak, MiB", "tokens per second", "against untouched")
"""Headings of :meth:`Throughput.cells`."""


@dataclass(frozen=True)
class Throughput:
    """One strategy at the largest batch that fits.

    Attributes:
        strategy: label; "untouched" for the model without tokentrim.
        batch: rows at once.
        peak_bytes: most memory held beyond the weights at that batch.
        tokens_per_second: new tokens of all rows per second of the whole call, prefill included.
        ratio: tokens per second against the untouched model's at its own largest batch.
    """

    strategy: str
    batch: int
    peak_bytes: int
    tokens_per_second: Spread
    ratio: float

    def cells(self) -> list[str]:
        """A line of a table with the headings :data:`COLUMNS`."""
        peak = f"{self.peak_bytes / 2**20:.0f}"
        return [self.strategy, str(self.batch), peak, self.tokens_per_second.text(1, 1), f"{self.ratio:.2f}"]


@dataclass(frozen=True)
class ThroughputResult(StoredBench):
    """A finished throughput bench; the ``batch`` of its options was not used.

    Attributes:
        budget: bytes beyond the weights.
        rows: the untouched model, then the strategies in the order asked for.
    """

    whom: ClassVar[str] = "a throughput bench of a suite"
    remedy: ClassVar[str] = "delete it to run it again"

    budget: int
    rows: tuple[Throughput, ...]


def throughput_command(options: BenchOptions, budget: int) -> str:
    """The command that measures the same; ``budget`` are bytes."""
    return f"{options.command()} --throughput {budget / 2**30:g}"


def largest_batch(budget: int, peak: Callable[[int], int], what: str) -> tuple[int, int]:
    """(largest batch whose ``peak`` stays within ``budget`` bytes, that peak).

    Found by doubling and halving; every peak is measured. A batch that the device has no memory for does not fit.

    Raises:
        ConfigError: when not even one row fits.
    """
    peaks = {1: peak(1)}
    if peaks[1] > budget:
        raise ConfigError(
            complaint(
                "the memory of a throughput bench", f"hold one row of {what}, {peaks[1]} bytes", budget, "raise it"
            )
        )

    def within(batch: int) -> bool:
        try:
            peaks[batch] = peak(batch)
        except torch.OutOfMemoryError:
            return False
        return peaks[batch] <= budget

    fits, beyond = 1, 2
    while within(beyond):
        fits, beyond = beyond, 2 * beyond
    while beyond - fits > 1:
        middle = (fits + beyond) // 2
        if within(middle):
            fits = middle
        else:
            beyond = middle
    return fits, peaks[fits]


def run_throughput(options: BenchOptions, budget: int, progress: Progress | None = None) -> ThroughputResult:
    """Find every strategy's largest batch, then time all at theirs, in turn.

    Args:
        options: as of a bench; its ``batch`` is not used.
        budget: bytes beyond the weights.
        progress: told what happens; how many batches are tried is known of none before.

    Raises:
        ConfigError: when not even one row fits, the device is not there, or line ends are to be pruned.
        StrategyError: when a strategy cannot be brought to the budget.
    """
    asked = options.to_dict()  # first, because it may refuse
    told = Silent() if progress is None else progress
    with threads(options.threads), torch.inference_mode(), settled():
        subject = BenchSubject.of(options)
        arms: list[Strategy | None] = [None, *subject.strategies()[1:]]  # none costs what the untouched model costs

        def peak_of(arm: Strategy | None) -> Callable[[int], int]:
            def peak(batch: int) -> int:
                prompt = subject.inputs(batch)
                with trimmed(subject.model, arm, compiled=options.compile):
                    found = peak_bytes(
                        subject.model.device, lambda: generate(subject.model, prompt, options.new_tokens)
                    )
                told.say(f"{label_of(arm)}: a batch of {batch} takes {found / 2**20:.0f} MiB beyond the weights")
                return found

            return peak

        told.start(2 * len(arms))
        for arm in arms:  # first calls allocate what later ones find ready
            peak_of(arm)(1)
            told.step(f"warm-up of {label_of(arm)}")
        fits: list[tuple[int, int]] = []
        for arm in arms:
            fits.append(largest_batch(budget, peak_of(arm), label_of(arm)))
            told.step(f"the largest batch of {label_of(arm)}: {fits[-1][0]}")
        told.start(options.repeats * len(arms))
        rates: list[list[float]] = [[] for _ in arms]
        for number in range(options.repeats):
            for rate, arm, (batch, _) in zip(rates, arms, fits, strict=True):
                prompt = subject.inputs(batch)
                with trimmed(subject.model, arm, compiled=options.compile):
                    timing = timed_generate(subject.model, prompt, options.new_tokens)
                steps = options.new_tokens - 1
                seconds = timing.prefill_seconds + steps * (timing.decode_seconds_per_token or 0.0)
                rate.append(batch * options.new_tokens / seconds)
                told.step(f"repeat {number + 1}, {label_of(arm)}")
        environment = environment_of(options)
    against = median(rates[0])
    return ThroughputResult(
        command=throughput_command(options, budget),
        options=asked,
        budget=budget,
        environment=environment,
        rows=tuple(
            Throughput(label_of(arm), batch, peak, Spread.of(rate), median(rate) / against)
            for arm, (batch, peak), rate in zip(arms, fits, rates, strict=True)
        ),
    )


def throughput_markdown(options: BenchOptions, result: ThroughputResult) -> str:
    """A table for a page of documentation."""
    where = result.environment
    lines = [
        f"{options.geometry}, {options.tokens()}, {options.new_tokens} new, {result.budget / 2**20:.0f} MiB beyond the "
        f"weights; {where['device']}, {where['dtype']}, torch {where['versions']['torch']}; "
        f"{options.repeats} interleaved repeats.",
        "",
        f"| {' | '.join(COLUMNS)} |",
        "| --- | ---: | ---: | ---: | ---: |",
        *(f"| {' | '.join(row.cells())} |" for row in result.rows),
    ]
    return "\n".join(lines) + "\n"
