"""Cells: one method at one budget on one task with one model, each with a key that changes when its result may."""

from __future__ import annotations

import hashlib
import platform
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final

from tokentrim.config.specs import StrategySpec
from tokentrim.contracts.load_options import RARE
from tokentrim.contracts.strategy import Strategy
from tokentrim.contracts.tasks import Split
from tokentrim.counting.forecast import planned_cached, planned_layer_tokens
from tokentrim.counting.shape import ModelShape
from tokentrim.loading import HubModel, Loaded, describe, device_of, hub_model, load_model, require_attention
from tokentrim.plugins.loader import installed_version, registry
from tokentrim.runs.specs import Match, ModelSpec, TaskSpec, Timing, digest
from tokentrim.selftest.learning import learnt

REFERENCE: Final = "none"
CONTROL: Final = "random"
CONTROLS: Final = (CONTROL, "uniform", "pool")
"""Strategies that every comparison runs, where the model can give what they read."""
TEXT_ONLY: Final = "text-only"
# Whatever may change an answer; a new matplotlib need not answer all questions again.
_THAT_MATTER: Final = ("torch", "transformers")
_SAMPLED_BYTES: Final = 1 << 20
_SCHEMA: Final = 3  # of the cell files; raised when what they hold changes


@dataclass(frozen=True)
class ModelTarget:
    """A model of the comparison, located but not loaded.

    Attributes:
        spec: what was asked for.
        folder: of its files; of a model of the hub perhaps without the weights yet.
        fingerprint: changes when its files do.
        shape: its numbers.
        hub: a model of the hub, at its commit.
    """

    spec: ModelSpec
    folder: Path
    fingerprint: str
    shape: ModelShape
    hub: HubModel | None = None

    @property
    def name(self) -> str:
        """Its name in results."""
        return self.spec.model

    @property
    def device(self) -> str:
        """Where it is to run: a device that was named need not be here, because another machine may run its cells."""
        return device_of(self.spec.device) if self.spec.device == "auto" else self.spec.device

    @property
    def placement(self) -> list[Any]:
        """What of the loading may change an answer."""
        rare: dict[str, Any] = self.spec.model_dump(include=set(RARE))
        return [self.device, self.spec.dtype, *([rare] if rare else [])]

    def load(self) -> Loaded:
        """The model and its processor; see :func:`~tokentrim.loading.load_model`."""
        return load_model(self.folder if self.hub is None else str(self.hub), **self.spec.loading)


@dataclass(frozen=True)
class Solved:
    """A knob that was solved by measuring.

    Attributes:
        strategy: with the knob set; None where no value of it meets the budget.
        about: how it was found, for the cell's head.
        reason: why there is no strategy.
    """

    strategy: StrategySpec | None
    about: dict[str, Any]
    reason: str = ""


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
        max_new_tokens: limit of an answer.
        batch_size: questions answered at once.
        budget: the share asked for; None where the strategy runs as it is configured.
        seed: where the method draws random numbers.
        boundary: where a text-only row drops the image; for others the first boundary at which they are expected to
            drop tokens, None where none is known before they run.
        pictures: questions whose kept tokens are recorded.
        control: what is done to the pictures before the processor, instead of a strategy.
        timing: how its knob is solved for a share of time; None where it is solved on the plan.
        solved: what that found; no part of the key, which stands for what is asked.
    """

    model: ModelTarget
    task: TaskSpec
    n: int
    split: Split
    method: str
    strategy: StrategySpec
    match: Match
    max_new_tokens: int
    batch_size: int
    budget: float | None = None
    seed: int | None = None
    boundary: int | None = None
    pictures: int = 0
    control: str | None = None
    timing: Timing | None = None
    solved: Solved | None = None

    @cached_property
    def key(self) -> str:
        """Hash of all that may change the cell's result."""
        return digest(
            {
                "schema": _SCHEMA,
                "versions": {name: value for name, value in versions().items() if name in (*_THAT_MATTER, "tokentrim")},
                "model": self.model.fingerprint,
                "placement": self.model.placement,
                "origin": _origin(self.task.task),
                "task": [self.task.task, self.split, self.n, self.max_new_tokens],
                "strategy": self.strategy.as_dict(),
                "budget": [self.match, self.budget],
                "batch": [self.batch_size, self.pictures],
                **({"control": self.control} if self.control else {}),
                **({"timing": self.timing.model_dump()} if self.timing else {}),
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
            "control": self.control,
        }


def locate(spec: ModelSpec) -> ModelTarget:
    """Find a model's folder and numbers without loading it, nor fetching weights.

    Raises:
        TokentrimError: when there is no such model, no adapter serves its family, or it is to be loaded with an
            attention that transformers does not know.
    """
    require_attention(spec.attn_implementation)
    folder, _, _, shape = describe(spec.model)
    shape = learnt(spec.model, shape)
    hub = hub_model(spec.model)
    if hub is None:
        return ModelTarget(spec, folder, _fingerprint(folder), shape)
    commit = folder.name  # stands for all files, those that are not here yet among them
    return ModelTarget(spec, folder, commit[:16], shape, hub._replace(revision=commit))


def _fingerprint(folder: Path) -> str:
    """Short hash of a model's files: names, sizes, and the first and last MiB of each; enough to notice new weights."""
    total = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        if not path.is_file() or path.suffix not in (".json", ".safetensors", ".bin", ".jinja", ".model"):
            continue
        size = path.stat().st_size
        total.update(f"{path.name}:{size};".encode())
        with path.open("rb") as file:
            total.update(file.read(_SAMPLED_BYTES))
            file.seek(max(0, size - _SAMPLED_BYTES))
            total.update(file.read(_SAMPLED_BYTES))
    return total.hexdigest()[:16]


def first_boundary(strategy: Strategy, shape: ModelShape, n_visual: int | None = None) -> int | None:
    """The first boundary at which a strategy's plan drops tokens during prefill.

    Args:
        strategy: with its knob solved.
        shape: the model's numbers.
        n_visual: visual tokens of the prompt; None = of the model's usual picture.

    Returns:
        The boundary; None where nothing is dropped, or where the data decide whether anything is.
    """
    if n_visual is None:
        n_visual = shape.vision.n_visual if shape.vision else 1
    layers = planned_layer_tokens(strategy.spatial_parts, shape, n_visual)
    return next((layer for layer, kept in enumerate(layers) if kept < n_visual), None)


def prunes(strategy: Strategy, shape: ModelShape, n_visual: int, steps: int) -> bool:
    """Whether a strategy's own plan drops anything of a prompt; counts that depend on the data promise nothing.

    Args:
        strategy: with its knob solved.
        shape: the model's numbers.
        n_visual: visual tokens of the prompt.
        steps: decode forwards of its answer.
    """
    layers = planned_layer_tokens(strategy.spatial_parts, shape, n_visual)
    held, seen = planned_cached(strategy.temporal_part, shape, layers, steps + 1)
    return any(n != n_visual for n in layers) or any(now != layers for now in (*held, *seen))


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
