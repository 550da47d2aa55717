"""Trainable: what a spatial strategy with trained weights shares with every other one.

A strategy object stays frozen configuration: it names a weights file (or takes the one that its package ships for the
model at hand), reads it when a prompt begins, and remembers it. Without weights it refuses to run.
"""

from __future__ import annotations

import json
import sys
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field, PrivateAttr
from typing_extensions import Self

from tokentrim.contracts.extras import PromptInfo
from tokentrim.contracts.strategy import Spatial
from tokentrim.contracts.trained.weights import Header, read_header, read_weights, write_weights
from tokentrim.counting.shape import ModelShape
from tokentrim.errors import StrategyError, complaint, reason_of

if TYPE_CHECKING:
    import torch
    from torch import nn


class Trainable(Spatial, ABC):
    """A spatial strategy that carries trained weights.

    A subclass says how its module is built (:meth:`build`), with which sizes (:meth:`sizes`), and who trains it
    (``trainer``). At a site, ``site.state`` is a :class:`Held`: ``site.state.on(site.device)`` is the module.
    """

    trainable: ClassVar[bool] = True
    trainer: ClassVar[str] = ""
    """``package.module:Class`` of a :class:`tokentrim.train.Trainer`; imported only when something is trained."""

    weights: Path | None = Field(
        default=None, description="safetensors file of trained weights; default: those shipped for the model"
    )
    any_model: bool = Field(
        default=False, description="run weights that were trained on another model of the same sizes"
    )
    _held: Any = PrivateAttr(default=None)

    @abstractmethod
    def build(self, shape: ModelShape, **sizes: int) -> nn.Module:
        """The untrained module for a model; initial weights follow torch's generator, which the caller seeds."""

    def sizes(self, shape: ModelShape) -> dict[str, int]:
        """Default sizes of the module for a model; a weights file remembers the ones that it has."""
        return {}

    def made_for(self, shape: ModelShape) -> dict[str, int]:
        """Numbers that weights are bound to: sizes of the model, and whatever a subclass adds."""
        return {"layers": shape.n_layers, "hidden_size": shape.hidden_size, "heads": shape.n_heads}

    def begin(self, prompt: PromptInfo) -> Held:
        """The module for this prompt."""
        return self.held(prompt.shape)

    def prepare(self, shape: ModelShape) -> None:
        """Load the weights.

        Raises:
            StrategyError: when there are none for this model, or they are not what they should be.
        """
        self.held(shape)

    def meet(self, model: nn.Module, shape: ModelShape) -> None:
        """Check that the weights were trained on this very model, as it was then.

        Raises:
            StrategyError: when they were not, or nobody can tell; not for untrained weights, or with ``any_model``.
        """
        if self._held is not None or self.any_model:
            return
        from tokentrim.contracts.trained.sketch import difference, is_same  # it needs torch, which plans do not

        path = self.file_for(shape)
        about = read_header(path).model
        if not about:
            return
        found = difference(about.get("sketch") or {}, model)
        if found is None or not is_same(found):
            name = f"{about.get('name')} (fingerprint {about.get('fingerprint')})"
            got = (
                "too few of the sketched weights are there to tell" if found is None else f"they differ by {found:.0%}"
            )
            raise StrategyError(
                complaint(
                    f"the model under the weights in {path}",
                    f"be the one that they were trained on, {name}",
                    got,
                    f"train weights on this model ('tokentrim train {self.name} --model FOLDER --out "
                    "FILE.safetensors'), or set 'any_model: true' to run these all the same",
                )
            )

    def held(self, shape: ModelShape) -> Held:
        """The module for a model, loaded once per file and device.

        Raises:
            StrategyError: see :meth:`prepare`.
        """
        import torch

        if self._held is not None:
            return Held(self, shape, None, ())
        path = self.file_for(shape)
        try:
            status = path.stat()
        except (OSError, ValueError):
            read_header(path)  # says what is wrong with it
            raise
        held = Held(self, shape, path, (status.st_mtime_ns, status.st_size))
        held.on(torch.device("cpu"))
        return held

    def holding(self, module: nn.Module) -> Self:
        """This strategy with a module in memory instead of a file: what a trainer runs."""
        copy = self.model_copy()
        copy._held = module
        return copy

    def file_for(self, shape: ModelShape) -> Path:
        """The weights file for a model.

        Raises:
            StrategyError: when none is given and none is shipped for it.
        """
        if self.weights is not None:
            return self.weights
        wanted = self.made_for(shape)
        for path in shipped(type(self)):
            header = read_header(path)
            if header.strategy == self.name and header.made_for == wanted:
                return path
        sizes = ", ".join(f"{key} {value}" for key, value in wanted.items())
        raise StrategyError(
            complaint(
                f"strategy {self.name!r}",
                f"have weights for this model ({sizes})",
                None,
                f"train them with 'tokentrim train {self.name} --model FOLDER --out FILE.safetensors', then set "
                f"'weights: FILE.safetensors'",
            )
        )

    def untrained(self, shape: ModelShape, file: Path, *, seed: int = 0, **sizes: int) -> Path:
        """Write a weights file of initial values: for tests, and to start from; returns ``file``."""
        sizes = {**self.sizes(shape), **sizes}
        module = self.fresh(shape, seed, sizes)
        header = Header(self.name, self.made_for(shape), sizes, provenance={"untrained": True, "seed": seed})
        write_weights(file, module.state_dict(), header)
        return file

    def fresh(self, shape: ModelShape, seed: int, sizes: Mapping[str, int]) -> nn.Module:
        """An untrained module, a function of the seed alone; torch's own generator is left as it was."""
        import torch

        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return self.build(shape, **sizes)


@dataclass(frozen=True)
class Held:
    """A strategy's module for one model: read from ``path``, or held by the strategy itself where that is None."""

    strategy: Trainable
    shape: ModelShape
    path: Path | None
    stamp: tuple[int, ...]
    """Changes when the file does."""

    def on(self, device: torch.device) -> Any:
        """The module on a device, in float32, not to be trained (unless the strategy holds it for its trainer)."""
        if self.path is None:
            return self.strategy._held  # pyright: ignore[reportPrivateUsage]  # one class in two halves
        frozen: Any = self.strategy  # hashable, which pydantic tells no type checker
        return _loaded(frozen, self.shape, self.path, self.stamp, device)


def shipped(strategy: type[Trainable]) -> Iterator[Path]:
    """Weights files that came with a strategy's package: ``weights/*.safetensors`` beside the strategy's file."""
    source = sys.modules[strategy.__module__].__file__
    if source is not None:
        found = (Path(source).parent / "weights").glob("*.safetensors")
        yield from sorted(path for path in found if not path.name.startswith("."))  # hidden: a training's state


@lru_cache(maxsize=16)
def _loaded(
    strategy: Trainable, shape: ModelShape, path: Path, stamp: tuple[int, ...], device: torch.device
) -> nn.Module:
    header, tensors = read_weights(path)
    _require(header.strategy == strategy.name, f"the weights in {path}", f"be of strategy {strategy.name!r}",
             header.strategy)  # fmt: skip
    wanted = strategy.made_for(shape)
    _require(header.made_for == wanted, f"the weights in {path}", f"be made for {json.dumps(wanted)}",
             json.dumps(dict(header.made_for)))  # fmt: skip
    most = sum(tensor.numel() for tensor in tensors.values())  # a module of such sizes has no fewer weights
    fit = all(0 < size <= most for size in header.sizes.values())
    _require(fit, f"sizes in {path}", f"be in 1..{most}, the number of its weights", dict(header.sizes))
    try:
        module = strategy.fresh(shape, 0, header.sizes)
    except Exception as cause:  # sizes lead a module to whatever it raises
        raise StrategyError(
            complaint(f"sizes in {path}", "fit the strategy", dict(header.sizes), reason_of(cause))
        ) from cause
    expected = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    _require(found == expected, f"the tensors in {path}", f"have the shapes {_differing(expected, found)}",
             _differing(found, expected))  # fmt: skip
    numbers = all(tensor.is_floating_point() for tensor in tensors.values())
    _require(numbers, f"the tensors in {path}", "hold floating-point numbers", "others")
    finite = all(bool(tensor.float().isfinite().all()) for tensor in tensors.values())
    _require(finite, f"the tensors in {path}", "be finite", "NaN or infinity")
    module.load_state_dict(tensors)
    return module.float().to(device).eval().requires_grad_(False)


def _differing(these: Mapping[str, Any], those: Mapping[str, Any]) -> dict[str, Any]:
    """The entries of ``these`` that ``those`` has not."""
    return {name: value for name, value in these.items() if those.get(name) != value}


def _require(holds: bool, what: str, must: str, got: object) -> None:
    if not holds:
        raise StrategyError(complaint(what, must, got, "set 'weights' to another file, or train one: tokentrim train"))
