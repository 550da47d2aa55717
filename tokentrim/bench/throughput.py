"""Throughput: what pruning buys a server, the largest batch that fits into a memory and tokens per second at it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

import torch
from torch import Tensor

from tokentrim.bench.geometry import GEOMETRIES, build_model, build_prompt
from tokentrim.bench.measure import generate, peak_bytes, timed_generate
from tokentrim.bench.options import BenchOptions
from tokentrim.bench.result import Spread
from tokentrim.bench.runner import at_budget, chosen_device, chosen_dtype, threads, trimmed
from tokentrim.config import strategy_from
from tokentrim.errors import ConfigError, complaint
from tokentrim.session import adapter_of
from tokentrim.strategy import Strategy


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

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)


def largest_batch(budget: int, peak: Callable[[int], int], what: str) -> tuple[int, int]:
    """(largest batch whose ``peak`` stays within ``budget`` bytes, that peak).

    Found by doubling and halving; every peak is measured.

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
    fits, beyond = 1, 2
    while (held := peak(beyond)) <= budget:
        peaks[beyond] = held
        fits, beyond = beyond, 2 * beyond
    while beyond - fits > 1:
        middle = (fits + beyond) // 2
        if (held := peak(middle)) <= budget:
            peaks[middle] = held
            fits = middle
        else:
            beyond = middle
    return fits, peaks[fits]


def run_throughput(options: BenchOptions, budget: int) -> list[Throughput]:
    """Find every strategy's largest batch, then time all at theirs, in turn.

    Args:
        options: as of a bench; its ``batch`` is not used.
        budget: bytes beyond the weights.

    Raises:
        ConfigError: when not even one row fits.
    """
    geometry = GEOMETRIES[options.geometry]
    device = chosen_device(options)
    with threads(options.threads), torch.inference_mode():
        model = build_model(geometry, device, chosen_dtype(options, device), options.seed)
        shape = adapter_of(model).locate(model).shape
        n_visual = options.images * geometry.n_visual
        given = [at_budget(spec, shape, n_visual, options) for spec in options.strategies]
        nothing = strategy_from("none").strategy
        arms: list[Strategy | None] = [None, *(strategy for strategy in given if strategy != nothing)]

        def inputs(batch: int) -> dict[str, Tensor]:
            return build_prompt(
                geometry, model, batch=batch, images=options.images, prompt_tokens=options.prompt_tokens,
                seed=options.seed,
            )  # fmt: skip

        def peak_of(arm: Strategy | None) -> Callable[[int], int]:
            def peak(batch: int) -> int:
                prompt = inputs(batch)
                with trimmed(model, arm, compiled=options.compile):
                    return peak_bytes(device, lambda: generate(model, prompt, options.new_tokens))

            return peak

        for arm in arms:  # first calls allocate what later ones find ready
            peak_of(arm)(1)
        fits = [largest_batch(budget, peak_of(arm), _label(arm)) for arm in arms]
        rates: list[list[float]] = [[] for _ in arms]
        for _ in range(options.repeats):
            for rate, arm, (batch, _) in zip(rates, arms, fits, strict=True):
                prompt = inputs(batch)
                with trimmed(model, arm, compiled=options.compile):
                    timing = timed_generate(model, prompt, options.new_tokens)
                steps = options.new_tokens - 1
                seconds = timing.prefill_seconds + steps * (timing.decode_seconds_per_token or 0.0)
                rate.append(batch * options.new_tokens / seconds)
    against = median(rates[0])
    return [
        Throughput(_label(arm), batch, peak, Spread.of(rate), median(rate) / against)
        for arm, (batch, peak), rate in zip(arms, fits, rates, strict=True)
    ]


def _label(arm: Strategy | None) -> str:
    return "untouched" if arm is None else arm.label()


def throughput_markdown(
    options: BenchOptions, budget: int, rows: Sequence[Throughput], where: Mapping[str, Any]
) -> str:
    """A table for a page of documentation."""
    lines = [
        f"{options.geometry}, {options.images * GEOMETRIES[options.geometry].n_visual} visual and "
        f"{options.prompt_tokens} text tokens, {options.new_tokens} new, {budget / 2**20:.0f} MiB beyond the weights; "
        f"{where['device']}, {where['dtype']}, torch {where['versions']['torch']}; "
        f"{options.repeats} interleaved repeats.",
        "",
        "| strategy | largest batch | peak, MiB | tokens per second | against untouched |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    lines += [
        f"| {row.strategy} | {row.batch} | {row.peak_bytes / 2**20:.0f} | {row.tokens_per_second.text(1, 1)} "
        f"| {row.ratio:.2f} |"
        for row in rows
    ]
    return "\n".join(lines) + "\n"
