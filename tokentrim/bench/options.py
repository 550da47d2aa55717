"""What to measure, checked before anything is built."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, get_args

from tokentrim.bench.families.base import Geometry
from tokentrim.bench.geometry import GEOMETRIES
from tokentrim.config.specs import Spec, strategy_from
from tokentrim.contracts.load_options import DeviceMap
from tokentrim.errors import ConfigError, complaint
from tokentrim.loading import DeviceName, DTypeName, hub_model, require_attention, unknown_model
from tokentrim.plugins.loader import registry


def split_strategies(text: str) -> tuple[str, ...]:
    """``"st3,{name: fastv, k: 3}"`` -> its strategies: commas inside brackets are YAML's, not ours."""
    pieces, depth = [""], 0
    for sign in text:
        depth += (sign in "{[") - (sign in "}]")
        if sign == "," and depth == 0:
            pieces.append("")
        else:
            pieces[-1] += sign
    return tuple(piece.strip() for piece in pieces if piece.strip())


@dataclass(frozen=True)
class BenchOptions:
    """Options of one bench.

    Attributes:
        geometry: name of a model geometry, see :data:`tokentrim.bench.GEOMETRIES`; or a model, by its name, folder or
            id on the hub, whose config and processor are read and whose weights are made up as well.
        strategies: what to measure beside ``none``, each as any place takes a strategy.
        layer_mean_ratio: budget that each strategy's knob is solved for; None = as configured.
        device: auto takes a GPU where there is one.
        dtype: of the weights; auto is float32 on CPU and bfloat16 on a GPU.
        attn_implementation: of transformers; None leaves the choice to the model.
        device_map: refused, unless None: a bench measures one device.
        batch: equal rows per prompt.
        images: images per row.
        prompt_tokens: text tokens of the prompt, besides those that its images bring along.
        new_tokens: tokens that a long run generates; at least 2, so that there is something to time.
        repeats: timed runs of each strategy.
        budget_minutes: what all of it may take; there are fewer repeats where they would take longer, at least one.
        threads: CPU threads; None = torch's own choice.
        memory: whether to measure peak memory (one more untimed run per strategy).
        compile: whether strategies (``none`` among them) decode compiled; the untouched model never does.
        limits: whether to measure the machine's matrix rate and memory bandwidth, and the distance to them.
        seed: of the weights and the prompt.
    """

    geometry: str = "scaled"
    strategies: tuple[Spec, ...] = ("st3", "fastv", "random")
    layer_mean_ratio: float | None = 0.25
    device: DeviceName = "auto"
    dtype: DTypeName = "auto"
    attn_implementation: str | None = None
    device_map: DeviceMap | None = None
    batch: int = 1
    images: int = 1
    prompt_tokens: int = 35
    new_tokens: int = 32
    repeats: int = 5
    budget_minutes: float | None = None
    threads: int | None = None
    memory: bool = True
    compile: bool = False
    limits: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        if self.geometry not in GEOMETRIES and not self._is_model:
            raise unknown_model("geometry of a bench", self.geometry, GEOMETRIES)
        least_of = {"batch": 1, "images": 1, "prompt_tokens": 2, "new_tokens": 2, "repeats": 1, "threads": 1}
        for name, least in least_of.items():
            value = getattr(self, name)
            if value is not None and value < least:
                raise ConfigError(complaint(f"{name} of a bench", f"be at least {least}", value))
        if self.budget_minutes is not None and not self.budget_minutes > 0:
            raise ConfigError(complaint("budget_minutes of a bench", "be above 0", self.budget_minutes))
        choices = {"device": get_args(DeviceName), "dtype": get_args(DTypeName)}
        for name, known in choices.items():
            if getattr(self, name) not in known:
                raise ConfigError(complaint(f"{name} of a bench", f"be one of {', '.join(known)}", getattr(self, name)))
        if self.device_map is not None:
            hint = "its floor and its limits are those of one device: name that as device"
            raise ConfigError(complaint("device_map of a bench", "be left out", self.device_map, hint))
        require_attention(self.attn_implementation)

    @property
    def sizes(self) -> Geometry:
        """The geometry that is named, or that of the model.

        Raises:
            TokentrimError: when a model is named, and there is none, or its processor cannot be had.
        """
        if self.geometry in GEOMETRIES:
            return GEOMETRIES[self.geometry]
        from tokentrim.bench.families.of_model import of_model  # what it needs of transformers takes a second

        return of_model(self.geometry)

    @property
    def _is_model(self) -> bool:
        """Whether the geometry is that of a model that is named."""
        named = self.geometry in registry("model") or os.path.exists(self.geometry)
        return named or hub_model(self.geometry) is not None

    @property
    def n_visual(self) -> int:
        """Visual tokens per row."""
        return self.images * self.sizes.n_visual

    @property
    def n_text(self) -> int:
        """All other tokens per row: the asked ones, and line ends of images or marks around them."""
        return self.sizes.n_text(self.prompt_tokens, self.images)

    def tokens(self) -> str:
        """What a row holds, in words."""
        marks = self.n_text - self.prompt_tokens
        among = f" ({marks} of them {self.sizes.marks})" if marks else ""
        return f"{self.n_visual} visual and {self.n_text} text tokens{among}"

    def to_dict(self) -> dict[str, Any]:
        """Plain data, every strategy as a dict.

        Raises:
            ConfigError: when a strategy comes with line ends to be pruned: a bench keeps them.
        """
        return {**asdict(self), "strategies": [strategy_from(spec).as_dict() for spec in self.strategies]}

    def command(self) -> str:
        """The command that measures the same; options at their defaults are left out."""
        words = ["tokentrim", "bench"]
        for one in fields(self):
            value, flag = getattr(self, one.name), one.name.replace("_", "-")
            if value == one.default:
                continue
            if isinstance(value, bool):
                words.append(f"--{flag}" if value else f"--no-{flag}")
            else:
                text = ",".join(map(_written, value)) if one.name == "strategies" else str(value or 0)
                words += [f"--{flag}", text]
        return shlex.join(words)


def _written(spec: Spec) -> str:
    """A strategy as a command line takes it."""
    if isinstance(spec, str | Path):
        return str(spec)
    return json.dumps(dict(spec) if isinstance(spec, Mapping) else strategy_from(spec).as_dict())
