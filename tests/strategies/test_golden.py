"""Every method against what its authors' released code computes for given inputs, one file of ``tests/golden`` each.

A file ``tests/golden/<method>.safetensors`` holds cases: inputs, parameters, and outputs of the authors' code, in
float32 on a CPU. ``tests/strategies/golden/<method>.py`` feeds a case to the strategy that comes with tokentrim:

- ``outputs(inputs, params)`` returns a dictionary of outputs by name: of the primary ones all, of the others any;
- ``LEFT_OUT`` (optional) names outputs that a strategy does not decide, each with the reason.
"""

from __future__ import annotations

import importlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from torch import Tensor

DATA = Path(__file__).parents[1] / "golden"
_SETS = ("kept", "local", "deleted", "anchors", "dominant", "pivots_", "read_", "padding", "channels")
"""Beginnings of outputs whose order says nothing."""


@dataclass(frozen=True)
class Case:
    """One run of the authors' code."""

    method: str
    name: str
    params: dict[str, Any]
    inputs: dict[str, Tensor]
    outputs: dict[str, Tensor]
    primary: tuple[str, ...]
    relative: float
    absolute: float


def _wide(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.dtype == torch.float16 else tensor


def cases(path: Path) -> list[Case]:
    """The cases of one file. Half precision only saves room there: the numbers are exact in it."""
    with safe_open(path, "pt") as file:
        about = json.loads(file.metadata()["golden"])

        def tensors(places: dict[str, str]) -> dict[str, Tensor]:
            return {name: _wide(file.get_tensor(place)) for name, place in places.items()}

        return [
            Case(
                about["method"],
                case["name"],
                case["params"],
                tensors(case["inputs"]),
                tensors(case["outputs"]),
                tuple(case["primary"]),
                case["rtol"],
                case["atol"],
            )
            for case in about["cases"]
        ]


FILES = sorted(DATA.glob("*.safetensors"))
CASES = [pytest.param(case, id=f"{case.method}-{case.name}") for path in FILES for case in cases(path)]


def as_rows(value: Tensor) -> list[Any]:
    """A set of numbers in each row, in order; -1 stands for nothing."""
    if value.dim() > 1:
        return [as_rows(row) for row in value]
    return sorted(number for number in value.tolist() if number >= 0)


@pytest.mark.parametrize("case", CASES)
def test_equals_the_authors_code(case: Case):
    feed = importlib.import_module(f"tests.strategies.golden.{case.method}")
    left_out: dict[str, str] = getattr(feed, "LEFT_OUT", {})
    got: dict[str, Tensor] = feed.outputs({name: value.clone() for name, value in case.inputs.items()}, case.params)
    missing = [name for name in case.primary if name not in got and name not in left_out]
    assert not missing
    for name, value in got.items():
        want = case.outputs[name]
        if name.startswith(_SETS) or "_kept_" in name:
            assert as_rows(value) == as_rows(want), name
        elif want.is_floating_point():
            assert value.shape == want.shape, name
            np.testing.assert_allclose(value.numpy(), want.numpy(), rtol=case.relative, atol=case.absolute)
        else:
            assert value.tolist() == want.tolist(), name
