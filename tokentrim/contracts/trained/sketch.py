"""A sketch of a model: a few of its weights, by which weights trained on one model are told from another's.

Values are compared, not hashed, so that a model loaded in half precision is still itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import torch
from torch import Tensor, nn

_TENSORS: Final = 32
_VALUES: Final = 4  # of each tensor, evenly spread
_DIGITS: Final = 6
_ROUNDING: Final = 0.01
"""Relative difference that formats of 8 significant bits explain (0.4 % at most), with room."""
_ENOUGH: Final = 0.25
"""Share of the sketched tensors that must be found: adapters rename some, quantisation replaces many."""

Sketch = Mapping[str, Sequence[float]]


def sketch_of(model: nn.Module) -> dict[str, list[float]]:
    """A few values of a few tensors, evenly spread over the model, by the tensors' names.

    Args:
        model: the entry module of a layout.
    """
    known = {name: tensor for name, tensor in model.named_parameters() if _readable(tensor)}
    names = sorted(known)
    chosen = [names[place * len(names) // _TENSORS] for place in range(_TENSORS)] if len(names) > _TENSORS else names
    return {name: [float(f"{value:.{_DIGITS}g}") for value in _values(known[name])] for name in chosen}


def difference(sketch: Sketch, model: nn.Module) -> float | None:
    """How far a model is from a sketch: the norm of the difference over that of the sketch.

    Returns:
        None where too few of the sketched tensors are there to tell (weights kept elsewhere, sharded or quantised).
    """
    known = dict(model.named_parameters())
    there = [name for name in sketch if name in known and _readable(known[name])]
    if len(there) < max(1, _ENOUGH * len(sketch)):
        return None
    before = torch.tensor([value for name in there for value in sketch[name]], dtype=torch.float64)
    found = [value for name in there for value in _values(known[name])]
    if len(found) != len(before):
        return 1.0
    now = torch.tensor(found, dtype=torch.float64)
    return float((now - before).norm() / before.norm().clamp(min=torch.finfo(torch.float64).tiny))


def is_same(found: float) -> bool:
    """Whether a :func:`difference` is one of rounding."""
    return found <= _ROUNDING


def _readable(tensor: Any) -> bool:
    """Whether a parameter's numbers are here, whole and as floating-point numbers."""
    plain = type(tensor) in (Tensor, nn.Parameter)
    return plain and tensor.is_floating_point() and not tensor.is_meta and tensor.numel() > 0


def _values(tensor: Tensor) -> list[float]:
    places = [place * tensor.numel() // _VALUES for place in range(_VALUES)]
    return tensor.detach().reshape(-1)[torch.tensor(places, device=tensor.device)].double().tolist()
