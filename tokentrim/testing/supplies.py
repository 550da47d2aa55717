"""What a strategy must be given to run at all, such as weights; and the parameters at which it keeps everything."""

from __future__ import annotations

import atexit
from functools import lru_cache
from pathlib import Path
from shutil import rmtree
from tempfile import mkdtemp
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

from tokentrim.contracts.compose import Composition
from tokentrim.contracts.knobs import turned
from tokentrim.contracts.strategy import Strategy
from tokentrim.contracts.trained.trainable import Trainable
from tokentrim.contracts.trained.weights import read_weights, write_weights
from tokentrim.counting.forecast import plan
from tokentrim.counting.shape import ModelShape
from tokentrim.errors import TokentrimError

S = TypeVar("S", bound=Strategy)

_STEPS = 8
_LEVELS = 1e-9


def with_weights(strategy: S, shape: ModelShape) -> S:
    """``strategy``, every part of it with random weights for this model where it is trainable and names none."""
    if isinstance(strategy, Composition):
        parts = tuple(with_weights(part, shape) for part in strategy.spatial)
        changed: Any = Composition(spatial=parts, temporal=strategy.temporal)
        return changed
    if not isinstance(strategy, Trainable) or strategy.weights is not None:
        return strategy
    frozen: Any = strategy  # hashable, which pydantic tells no type checker
    return turned(strategy, "weights", _random_weights(frozen, shape), strategy.label())


@lru_cache(maxsize=1)
def _folder() -> Path:
    """Where random weights are; gone when the process ends."""
    made = Path(mkdtemp(prefix="tokentrim-weights-"))
    atexit.register(rmtree, made, ignore_errors=True)
    return made


@lru_cache(maxsize=64)
def _random_weights(strategy: Trainable, shape: ModelShape) -> Path:
    """The strategy's own initial values and noise, since those may be made to do little."""
    folder = _folder()
    file = strategy.untrained(shape, folder / f"{len(list(folder.iterdir()))}.safetensors")
    header, tensors = read_weights(file)
    generator = torch.Generator().manual_seed(0)
    noisy = {name: value + 0.2 * torch.randn(value.shape, generator=generator) for name, value in tensors.items()}
    write_weights(file, noisy, header)
    return file


def evidence_for(ids: Tensor, visual: Tensor, real: Tensor) -> list[Tensor]:
    """Made-up relevance of every visual token, a function of the row's text alone.

    Args:
        ids: int64 [B, T], the prompt.
        visual: bool [B, T], its visual tokens.
        real: bool [B, T], False in padding.
    """
    found: list[Tensor] = []
    for row, marks, here in zip(ids, visual, real, strict=True):
        generator = torch.Generator().manual_seed(int(row[here & ~marks].sum()))
        found.append(torch.rand(int(marks.sum()), generator=generator))
    return found


def keeping_all(strategy: Strategy, shape: ModelShape, n_visual: int) -> Strategy | None:
    """The strategy with each bounded number at the end where its plan keeps more; None unless that keeps everything."""
    if isinstance(strategy, Composition):
        spatial = [keeping_all(part, shape, n_visual) for part in strategy.spatial]
        temporal = None if strategy.temporal is None else keeping_all(strategy.temporal, shape, n_visual)
        if None in spatial or (strategy.temporal is not None and temporal is None):
            return None
        made: Any = Composition(spatial=cast("Any", tuple(spatial)), temporal=cast("Any", temporal))
        return made
    best, kept = strategy, share(strategy, shape, n_visual)
    for name, field in type(strategy).model_fields.items():
        for end in _ends(field.metadata):
            try:
                changed = turned(best, name, end, best.label())
                now = share(changed, shape, n_visual)
            except (TokentrimError, ValueError):
                continue
            if now > kept + _LEVELS:
                best, kept = changed, now
    return best if kept >= 1 else None


def sparsest(strategy: Strategy, shape: ModelShape, n_visual: int) -> Strategy:
    """The strategy with its budget knob at the end where its plan keeps less; as it is where there is no one knob."""
    try:
        knob = strategy.knob(n_visual)
        ends = knob.at(0), knob.at(knob.steps)
        return min(ends, key=lambda end: share(end, shape, n_visual))
    except TokentrimError:
        return strategy


def share(strategy: Strategy, shape: ModelShape, n_visual: int) -> float:
    """What the plan keeps, 0..1: mean of the shares of layer-mean tokens and of cache entries that are seen."""
    usage = plan(strategy, shape, n_visual, new_tokens=_STEPS).usage
    return (usage.layer_mean_ratio + usage.kv_read_ratio) / 2


def _ends(metadata: list[Any]) -> list[float]:
    """Bounds of a parameter, where they are inclusive."""
    return [value for one in metadata for name in ("ge", "le") if (value := getattr(one, name, None)) is not None]
