"""The subject of a bench: its model, where its modules are, and its numbers for the bench's pictures."""

from __future__ import annotations

import os
import platform
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from tokentrim.bench.geometry import build_model, build_prompt
from tokentrim.bench.options import BenchOptions
from tokentrim.config.specs import Spec, strategy_from
from tokentrim.contracts.adapter import Layout
from tokentrim.contracts.compose import Composition
from tokentrim.contracts.strategy import Strategy
from tokentrim.counting.shape import ModelShape
from tokentrim.errors import ConfigError, complaint, reason_of
from tokentrim.session import adapter_of


@dataclass(frozen=True)
class BenchSubject:
    """A model that is timed.

    Attributes:
        options: what was asked for.
        model: the model itself.
        layout: where its modules are.
        shape: its numbers, those of the vision tower for the bench's pictures.
    """

    options: BenchOptions
    model: Any
    layout: Layout
    shape: ModelShape

    @classmethod
    def of(cls, options: BenchOptions) -> BenchSubject:
        """The model of some options, built.

        Raises:
            ConfigError: when the device is not there, or the model cannot be built with the attention that is named.
        """
        device = chosen_device(options)
        chosen = {"attn_implementation": options.attn_implementation} if options.attn_implementation else {}
        try:
            model = build_model(options.sizes, device, chosen_dtype(options, device), options.seed, **chosen)
        except (ImportError, ValueError) as cause:  # of transformers: a library is missing, or the family has no such
            what = f"attn_implementation {options.attn_implementation!r} of a bench"
            if not chosen:
                raise
            raise ConfigError(complaint(what, "be one that its model has here", hint=reason_of(cause))) from cause
        layout = adapter_of(model).locate(model)
        return cls(options, model, layout, shape_for(layout.shape, options))

    def inputs(self, batch: int) -> dict[str, Tensor]:
        """Inputs of ``generate`` for ``batch`` rows."""
        options = self.options
        return build_prompt(
            options.sizes, self.model, batch=batch, images=options.images, prompt_tokens=options.prompt_tokens,
            seed=options.seed,
        )  # fmt: skip

    def strategies(self) -> list[Strategy]:
        """``none``, then the strategies that were asked for, at their budgets.

        Raises:
            StrategyError: when a strategy cannot be brought to the budget.
        """
        nothing = strategy_from("none").strategy
        given = [at_budget(spec, self.shape, self.options.n_visual, self.options) for spec in self.options.strategies]
        return [nothing, *(strategy for strategy in given if strategy != nothing)]


def shape_for(shape: ModelShape, options: BenchOptions) -> ModelShape:
    """``shape`` with the vision tower's counts for the bench's pictures; a config alone names no size."""
    return replace(shape, vision=options.sizes.shape_of_vision(shape.vision, options.images))


def at_budget(spec: Spec, shape: ModelShape, n_visual: int, options: BenchOptions) -> Strategy:
    """A strategy at its own budget if it has one, else at the bench's.

    A strategy without a knob that acts on prefill, such as ``none`` or ``vta``, runs as it is configured.

    Raises:
        StrategyError: when the budget cannot be met.
    """
    found = strategy_from(spec)
    strategy = found.strategy
    parts = strategy.spatial if isinstance(strategy, Composition) else (strategy,)
    tunable = any(part.budget_knob is not None and part.spatial_parts for part in parts)
    ratios = {"layer_mean_ratio": options.layer_mean_ratio} if tunable and options.layer_mean_ratio else {}
    budget = found.budget.ratios if found.budget else ratios
    if not budget:
        return strategy
    prompt = {"n_text": options.n_text, "new_tokens": options.new_tokens}
    return strategy.at_budget(shape, n_visual, **budget, **prompt)[0]


def chosen_device(options: BenchOptions) -> torch.device:
    """The device of a bench.

    Raises:
        ConfigError: when it is not there.
    """
    if options.device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if options.device == "cuda" and not torch.cuda.is_available():
        raise ConfigError(
            complaint("device of a bench", "be present", options.device, "torch finds no GPU: use auto or cpu")
        )
    return torch.device(options.device)


def chosen_dtype(options: BenchOptions, device: torch.device) -> torch.dtype:
    """The dtype of a bench's weights."""
    name = options.dtype
    if name == "auto":
        name = "bfloat16" if device.type == "cuda" else "float32"
    return getattr(torch, name)


@contextmanager
def threads(count: int | None) -> Generator[None]:
    """Use ``count`` CPU threads inside the block."""
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def environment_of(options: BenchOptions) -> dict[str, Any]:
    """What a reader needs to judge the times: versions, device and threads."""
    import transformers

    import tokentrim

    device = chosen_device(options)
    sizes = options.sizes
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else None
    return {
        "device": gpu or f"CPU ({platform.machine()})",
        "dtype": str(chosen_dtype(options, device)).removeprefix("torch."),
        "threads": torch.get_num_threads(),
        "cpu_count": os.cpu_count(),
        "sizes": f"{sizes.n_layers} layers, hidden {sizes.hidden_size}, {options.tokens()}",
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "tokentrim": tokentrim.__version__,
        },
    }
