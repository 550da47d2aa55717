"""Cells: one method at one budget on one task with one model, each with a key that changes when its result may."""

from __future__ import annotations

import platform
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final

from tokentrim.compare.config import CompareConfig, Match, MethodSpec, ModelSpec, TaskSpec, digest
from tokentrim.config import StrategySpec, strategy_from
from tokentrim.errors import ConfigError, complaint
from tokentrim.loading import device_of, fingerprint, read_config, require_supported, resolve_folder
from tokentrim.planning import prepare
from tokentrim.plugins import installed_version, registry
from tokentrim.presets import shape_of
from tokentrim.shape import ModelShape
from tokentrim.strategy import Strategy

REFERENCE: Final = "none"
CONTROL: Final = "random"
TEXT_ONLY: Final = "text-only"
# Whatever may change an answer; a new matplotlib need not answer all questions again.
_THAT_MATTER: Final = ("torch", "transformers")
_SCHEMA: Final = 2  # of the cell files; raised when what they hold changes


@dataclass(frozen=True)
class ModelTarget:
    """A model of the comparison, located but not loaded."""

    spec: ModelSpec
    folder: Path
    fingerprint: str
    shape: ModelShape

    @property
    def name(self) -> str:
        """Its name in results."""
        return self.spec.model

    @property
    def device(self) -> str:
        """Where it is to run: a device that was named need not be here, because another machine may run its cells."""
        return device_of(self.spec.device) if self.spec.device == "auto" else self.spec.device


@dataclass(frozen=True)
class Cell:
    """One method x budget x task x model (x seed, for a method that draws random numbers).

    Attributes:
        model: what answers.
        task: what is asked.
        n: how many questions.
        split: of the task.
        method: label in tables.
        strategy: what prunes, before its knob is solved.
        match: which share the budget means.
        budget: the share asked for; None where the strategy runs as it is configured.
        seed: where the method draws random numbers.
        boundary: the first boundary at which it prunes; None where it leaves prefill alone.
        max_new_tokens: limit of an answer.
        batch_size: questions answered at once.
        pictures: questions whose kept tokens are recorded.
    """

    model: ModelTarget
    task: TaskSpec
    n: int
    split: str
    method: str
    strategy: StrategySpec
    match: Match
    budget: float | None
    seed: int | None
    boundary: int | None
    max_new_tokens: int
    batch_size: int
    pictures: int

    @cached_property
    def key(self) -> str:
        """Hash of all that may change the cell's result."""
        return digest(
            {
                "schema": _SCHEMA,
                "versions": {name: value for name, value in versions().items() if name in (*_THAT_MATTER, "tokentrim")},
                "model": self.model.fingerprint,
                "placement": [self.model.device, self.model.spec.dtype],
                "origin": _origin(self.task.task),
                "task": [self.task.task, self.split, self.n, self.max_new_tokens],
                "strategy": self.strategy.as_dict(),
                "budget": [self.match, self.budget],
                "batch": [self.batch_size, self.pictures],
            }
        )

    @property
    def where(self) -> str:
        """Text for progress and messages."""
        budget = "" if self.budget is None else f" at {self.budget:.0%}"
        return f"{self.row} on {self.task.task} ({self.model.name}){budget}"

    @property
    def row(self) -> str:
        """Method, with its seed where that is not the first."""
        return f"{self.method} (seed {self.seed})" if self.seed else self.method

    def about(self) -> dict[str, Any]:
        """What identifies the cell's lines in results files."""
        return {
            "method": self.method,
            "model": self.model.name,
            "task": self.task.task,
            "budget_requested": self.budget,
            "matched_by": self.match,
            "seed": self.seed,
        }


def locate(spec: ModelSpec) -> ModelTarget:
    """Find a model's folder and numbers without loading it.

    Raises:
        TokentrimError: when there is no such model, or no adapter serves its family.
    """
    folder = resolve_folder(spec.model)
    require_supported(read_config(folder)["model_type"], f"model {spec.model!r}")
    shape = shape_of(str(folder))
    if shape.vision is None:
        raise ConfigError(complaint(f"model {spec.model!r}", "have a vision tower", hint="compare a multimodal model"))
    return ModelTarget(spec, folder, fingerprint(folder), shape)


def expand(config: CompareConfig, models: list[ModelTarget]) -> list[Cell]:
    """All cells, in the order in which they run: by model, then task, the unpruned run first."""
    cells: list[Cell] = []
    for model in models:
        variants = list(_variants(config, model))
        for task in config.tasks:
            limit = task.max_new_tokens or config.max_new_tokens or registry("task").get(task.task).max_new_tokens
            cells += [
                Cell(
                    model, task, config.samples_of(task), config.split, *variant, max_new_tokens=limit,
                    batch_size=config.batch_size, pictures=config.pictures,
                )
                for variant in variants
            ]  # fmt: skip
    return cells


Variant = tuple[str, StrategySpec, Match, float | None, int | None, int | None]


def _variants(config: CompareConfig, model: ModelTarget) -> Iterator[Variant]:
    """(method, strategy, match, budget, seed, boundary) of every row of one model."""
    methods = list(config.strategies)
    if all(method.name != REFERENCE for method in methods):
        methods.insert(0, MethodSpec(strategy=strategy_from(REFERENCE)))
    methods.sort(key=lambda method: method.name != REFERENCE)
    boundaries: set[int] = set()
    for method in methods:
        match: Match = matched_by(method, config)
        for seed, strategy in _seeded(method, config.seeds):
            boundary = first_boundary(strategy.strategy, model.shape)
            prepare(strategy.strategy, model.shape)  # missing weights are noticed before anything runs
            if boundary is not None and method.name != TEXT_ONLY:
                boundaries.add(boundary)
            budgets: Sequence[float | None] = [None] if match == "fixed" else method.budgets or config.budgets.values
            for budget in budgets:
                yield method.name, strategy, match, budget, seed, boundary
    listed = any(method.name == TEXT_ONLY for method in methods)
    if config.text_only and not listed:
        for boundary in sorted(boundaries):
            strategy = strategy_from({"name": TEXT_ONLY, "k": boundary})
            yield TEXT_ONLY, strategy, "fixed", None, None, boundary


def matched_by(method: MethodSpec, config: CompareConfig) -> Match:
    """Which share a method's budgets mean.

    A method without a knob, or with a budget of its own, runs as it is configured. One that acts on the cache alone
    has the same layer-mean tokens whatever it does, so its budgets are shares of the cache.
    """
    if method.match is not None:
        return method.match
    strategy = method.chosen.strategy
    parts = [*strategy.spatial_parts, *([strategy.temporal_part] if strategy.temporal_part else [])]
    if method.chosen.budget is not None or all(part.budget_knob is None for part in (strategy, *parts)):
        return "fixed"
    return config.budgets.match if strategy.spatial_parts else "kv_ratio"


def _seeded(method: MethodSpec, seeds: tuple[int, ...]) -> Iterator[tuple[int | None, StrategySpec]]:
    """A method once per seed, where it has one to set and does not set it."""
    spec = method.chosen
    fields = type(spec.strategy).model_fields
    if "seed" not in fields or "seed" in spec.strategy.model_fields_set:
        yield None, spec
        return
    for seed in seeds:
        yield seed, strategy_from({**spec.as_dict(), "seed": seed})


def first_boundary(strategy: Strategy, shape: ModelShape) -> int | None:
    """The first boundary at which a strategy may drop tokens during prefill."""
    n_visual = shape.vision.n_visual if shape.vision else 1
    boundaries = [part.schedule(shape, n_visual).boundaries for part in strategy.spatial_parts]
    inside = [boundary for listed in boundaries for boundary in listed if boundary < shape.n_layers]
    return min(inside, default=None)


def versions() -> dict[str, str]:
    """Versions of what a result depends on."""
    found = {"python": platform.python_version(), "tokentrim": installed_version()}
    for name in (*_THAT_MATTER, "numpy", "scipy", "pillow"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def _origin(task: str) -> str:
    """Who provides a task, with its version: a plugin's update may change its questions."""
    origin = registry("task").entry(task).origin
    return f"{origin.distribution} {origin.version}"
