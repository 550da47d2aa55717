"""One cache under several modes of torch: inference mode, autograd, autocast, another default dtype."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.engine.cases import SPECS, deviation, generate, trimmed
from tests.engine.reference import reference_logits
from tests.models import images, prompt, tiny_llava

_model = lru_cache(maxsize=2)(tiny_llava)
_SOME = ["fastv-query=last", "vta", "vta-ranking=frozen", "st3"]
_NEW = torch.tensor([31, 32, 33, 34, 35])
_WAYS = {"inference": torch.inference_mode, "no_grad": torch.no_grad, "grad": torch.enable_grad}


def _turns(model: Any, spec: Any, first: Any, second: Any) -> Tensor:
    """[1, 1 + G, V]: logits of a prompt and of two of its steps in one mode, and of the others in another."""
    inputs, found = prompt(model, [3, "image", 5]), list[Tensor]()
    with trimmed(model, spec, inputs):
        with first():
            out = model(**inputs, use_cache=True)
            found += [out.logits[:, -1:], *(_step(model, out, token) for token in _NEW[:2])]
        with second():
            found += [_step(model, out, token) for token in _NEW[2:]]
    return torch.cat([one.detach().clone() for one in found], dim=1)


def _step(model: Any, out: Any, token: Tensor) -> Tensor:
    return model(token.reshape(1, 1), past_key_values=out.past_key_values).logits


@pytest.mark.parametrize(
    ("name", "first", "second"),
    [
        *((name, "inference", "no_grad") for name in _SOME),
        ("vta", "no_grad", "inference"),
        ("st3", "inference", "grad"),
    ],
)
def test_a_cache_goes_on_in_another_mode(name: str, first: str, second: str) -> None:
    model = _model(side=4)
    expected = _turns(model, SPECS[name], torch.no_grad, torch.no_grad)
    assert deviation(_turns(model, SPECS[name], _WAYS[first], _WAYS[second]), expected) < 1e-5


@pytest.mark.parametrize("name", [*_SOME, "keep all"])
def test_a_gradient_flows_through_cached_steps(name: str) -> None:
    """To where the reference, which has no cache and evicts nothing, sends it."""
    spec = {"name": "fastv", "keep_ratio": 1.0} if name == "keep all" else SPECS[name]
    model = tiny_llava(side=4)
    learning = [model.lm_head.weight, *(layer.self_attn.k_proj.weight for layer in model.model.language_model.layers)]
    learning += [layer.self_attn.q_proj.weight for layer in model.model.language_model.layers]
    for parameter in learning:
        parameter.requires_grad_(True)
    inputs = prompt(model, [3, "image", 5])
    with trimmed(model, spec, inputs) as session:
        out = model(**inputs, use_cache=True)
        found = torch.cat([out.logits[:, -1:], *(_step(model, out, token) for token in _NEW)], dim=1)[0]
        with torch.no_grad():
            _step(model, out, _NEW[0])  # what follows without a gradient leaves alone what the gradient needs
        trace = session.trace
    gradients = torch.autograd.grad(_loss(found), learning)
    expected = reference_logits(model, inputs, _NEW, trace)[-len(_NEW) - 1 :]
    assert deviation(found.detach(), expected.detach()) < 1e-4
    for got, wanted in zip(gradients, torch.autograd.grad(_loss(expected), learning), strict=True):
        assert deviation(got, wanted) < 1e-3


def _loss(logits: Tensor) -> Tensor:
    return -logits.log_softmax(-1).diagonal(offset=40).sum()


@contextmanager
def _autocast() -> Generator[None]:
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        yield


def test_a_turn_in_autocast_and_a_turn_outside() -> None:
    """Keys and values of both turns count with the digits that they have: as without tokentrim."""
    model = _model(side=4)
    kept, found = (
        _turns(model, spec, _autocast, torch.no_grad) for spec in ({"name": "fastv", "keep_ratio": 1.0}, "none")
    )
    assert torch.equal(kept, found)


@pytest.mark.parametrize("name", ["yopo", "st3"])
def test_autocast_runs(name: str) -> None:
    model = _model(side=4)
    inputs = prompt(model, [3, "image", 5])
    with trimmed(model, SPECS[name], inputs):
        plain = generate(model, inputs, 1)[1]
        with torch.autocast("cpu", torch.bfloat16):
            assert deviation(generate(model, inputs, 1)[1].float(), plain) < 0.1


@pytest.mark.parametrize("name", ["sparsevlm", "pool", "st3"])
def test_the_default_dtype_is_the_callers(name: str) -> None:
    model = _model(side=4)
    inputs = {**prompt(model, [3, "image", 5], [2, "image", 9]), "pixel_values": images(2, model)}
    with trimmed(model, SPECS[name], inputs):
        ids, logits = generate(model, inputs, 4)
        torch.set_default_dtype(torch.float64)
        try:
            again, found = generate(model, inputs, 4)
        finally:
            torch.set_default_dtype(torch.float32)
    assert torch.equal(again, ids)
    assert found.dtype == torch.float32
    assert deviation(found, logits) < 1e-5
