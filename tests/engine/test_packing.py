"""Ragged batches: matrix products run on real tokens alone, and nothing else notices."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.engine.cases import deviation, generate
from tests.models import PAD, prompt, tiny_llava
from tests.qwen import tiny_qwen
from tokentrim.engine.abilities import packing
from tokentrim.engine.abilities.packing import _token_by_token
from tokentrim.session import trim

_model = lru_cache(maxsize=8)(tiny_llava)
RAGGED: tuple[list[int | str], ...] = ([3, "image", 5], [9], [2, "image", 4, "image", 7])
EVEN: tuple[list[int | str], ...] = ([3, "image", 5], [5, "image", 3])
SPECS: tuple[Any, ...] = ("fastv", {"name": "pvtp", "stride": 1}, {"name": "random", "boundary": 0})


@contextmanager
def seen(model: Any) -> Generator[list[tuple[int, ...]]]:
    """Shapes of what the feed-forward parts are handed."""
    shapes: list[tuple[int, ...]] = []
    layers = model.model.language_model.layers
    gates = [layer.mlp.gate_proj for layer in layers]
    handles = [gate.register_forward_pre_hook(lambda _, args: shapes.append(tuple(args[0].shape))) for gate in gates]
    try:
        yield shapes
    finally:
        for handle in handles:
            handle.remove()


def _hooks(model: Any) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_matrix_products_see_real_tokens_alone(spec: Any, attention: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = _model("llama", "clip", side=4, attention=attention)
    inputs = prompt(model, *RAGGED)
    with trim(model, spec) as session, seen(model) as packed:
        ids, logits = generate(model, inputs, 4)
        trace = session.trace
    text = [sum(one for one in row if isinstance(one, int)) for row in RAGGED]
    layers = trace.n_layers
    first = next(layer for layer in range(layers) if len(trace.kept(layer, 2)) < 32)
    assert all(shape[0] == 3 for shape in packed[:first])  # nothing has gone yet
    for layer in range(first, layers):
        tokens = sum(len(trace.kept(layer, row)) + text[row] for row in range(len(RAGGED)))
        assert packed[layer][:2] == (1, tokens)
    assert all(shape[:2] == (3, 1) for shape in packed[layers:])  # decoding is not ragged
    monkeypatch.setattr(packing, "LEAST_PADDING", 2.0)
    with trim(model, spec), seen(model) as padded:
        own_ids, own_logits = generate(model, inputs, 4)
    assert padded[0][0] == 3
    assert torch.equal(ids, own_ids)
    assert deviation(logits, own_logits) < 1e-5


def test_nothing_is_packed_without_padding() -> None:
    model = _model(side=4)
    with trim(model, "fastv"), seen(model) as shapes:
        generate(model, prompt(model, *EVEN), 2)
    assert all(shape[0] == 2 for shape in shapes)


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_on_either_side(side: str) -> None:
    model = _model(side=4)
    inputs = prompt(model, *RAGGED)
    if side == "right":
        for name in ("input_ids", "attention_mask"):
            rows = [
                torch.cat([row[keep], row[~keep]])
                for row, keep in zip(inputs[name], inputs["attention_mask"].bool(), strict=True)
            ]
            inputs[name] = torch.stack(rows)
    real = int((inputs["input_ids"] != PAD).sum())
    with trim(model, {"name": "fastv", "k": 3}), seen(model) as shapes, torch.no_grad():
        found = model(**inputs, use_cache=False).logits
    assert real < inputs["input_ids"].numel()
    assert shapes[2][0] == 3
    assert shapes[3][0] == 1
    with torch.no_grad(), trim(model, {"name": "fastv", "k": 3}):
        for row, keep in enumerate(inputs["attention_mask"].bool()):
            first = sum(part.count("image") for part in RAGGED[:row])
            own = {"input_ids": inputs["input_ids"][row : row + 1, keep]}
            if images := RAGGED[row].count("image"):
                own["pixel_values"] = inputs["pixel_values"][first : first + images]
            alone = model(**own, use_cache=False).logits
            assert deviation(found[row, keep][-1:], alone[0, -1:]) < 1e-4


def test_hooks_go_with_the_forward_even_when_it_fails() -> None:
    model = _model(side=4)
    inputs = prompt(model, *RAGGED)
    model(**inputs)  # transformers' own hooks come with the first forward
    before = _hooks(model)
    with trim(model, "fastv"):
        installed = _hooks(model)
        generate(model, inputs, 2)
        assert _hooks(model) == installed

        def fail(*_: Any) -> None:
            raise RuntimeError("here")

        handle = model.model.language_model.layers[3].register_forward_pre_hook(fail)
        with pytest.raises(RuntimeError, match="here"):
            generate(model, inputs, 2)
        handle.remove()
    assert _hooks(model) == before


def test_gradients_are_those_of_padded_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_llava(side=4).requires_grad_(True)
    inputs = prompt(model, *RAGGED)

    def gradients() -> list[Tensor]:
        model.zero_grad()
        with trim(model, {"name": "fastv", "k": 2}):
            model(**inputs, use_cache=False).logits[:, -1].float().square().sum().backward()
        return [p.grad.clone() for p in model.model.language_model.parameters() if p.grad is not None]

    packed = gradients()
    monkeypatch.setattr(packing, "LEAST_PADDING", 2.0)
    for ours, theirs in zip(packed, gradients(), strict=True):
        assert deviation(ours, theirs) < 1e-4


def test_chosen_experts_are_left_alone() -> None:
    layer = tiny_qwen("qwen3_vl_moe").model.language_model.layers[0]
    packed = _token_by_token(layer)
    assert layer.mlp not in packed
    assert layer.self_attn.q_proj in packed
