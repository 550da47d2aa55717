"""A row in a batch gives the answer of the row alone: ragged, padded, with any number of images.

That of each strategy's usual configuration the contract asks for, too: tests/testing/test_contract.py.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import pytest
import torch

from tests.engine.cases import (
    ANEW,
    ATTENDING_OTHERWISE,
    FIRST,
    OTHERS,
    RENUMBERED,
    SPECS,
    annotate,
    dealt,
    deviation,
    generate,
    trimmed,
)
from tests.models import IMAGE, alone, prompt, tiny_llava
from tokentrim.config.specs import strategy_from
from tokentrim.contracts.sites import Need

TOLERANCE = 1e-4
SIDE = 4

# 0, 1 and 2 images; at the start, inside, before the last token; texts of different lengths; one row unpadded.
_RAGGED: tuple[list[int | str], ...] = (
    [3, "image", 5],
    [9],
    [2, "image", 4, "image", 7],
    ["image", 1],
    ["image", "image", 2],
)

_model = lru_cache(maxsize=8)(tiny_llava)


def _compare(model: Any, spec: Any, layouts: tuple[list[int | str], ...], steps: int) -> None:
    inputs = prompt(model, *layouts)
    with trimmed(model, spec, inputs) as session:
        ids, logits = generate(model, inputs, steps)
        trace = session.trace
    for row in range(len(layouts)):
        single = alone(inputs, row, SIDE * SIDE)
        with trimmed(model, spec, single) as session:
            own_ids, own_logits = generate(model, single, steps)
            own = session.trace
        assert ids[row].tolist() == own_ids[0].tolist()
        assert deviation(logits[row], own_logits[0]) < TOLERANCE
        if "pixel_values" not in single:
            continue
        for layer in range(own.n_layers):
            assert torch.equal(trace.kept(layer, row), own.kept(layer))
            for step in range(1, steps):
                assert torch.equal(trace.cached(layer, step, row), own.cached(layer, step))


_FADING = [name for name in SPECS if strategy_from(SPECS[name]).strategy.temporal_part is not None]
_LEFT = [name for name in OTHERS if name not in _FADING]


@pytest.mark.parametrize(("name", "steps"), [*((name, 14) for name in _FADING), *((name, 5) for name in _LEFT)])
def test_a_row_in_a_ragged_batch_is_the_row_alone_through_decode(name: str, steps: int) -> None:
    """As many steps as evictions go on for; of other strategies what the contract does not look at, a few."""
    _compare(_model(side=SIDE), SPECS[name], _RAGGED, steps)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["st3", "vta-ranking=frozen"])
def test_a_row_in_a_ragged_batch_is_the_row_alone_through_32_steps(name: str) -> None:
    _compare(_model(side=SIDE), {**SPECS[name], "horizon": 30}, _RAGGED, 33)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", ["st3", "pool", "composition", "vta-ranking=frozen-every=5-floor=0.1"])
def test_a_row_in_a_ragged_batch_is_the_row_alone(name: str, attention: str) -> None:
    _compare(_model("qwen2", "siglip", side=SIDE, attention=attention), SPECS[name], _RAGGED, 8)


@pytest.mark.parametrize("name", ANEW)
def test_a_row_in_a_ragged_batch_is_the_row_alone_with_renumbered_positions(name: str) -> None:
    _compare(_model(side=SIDE), RENUMBERED[name], _RAGGED[:4], 5)


@pytest.mark.parametrize("name", ["st3", "pool", "random-boundary=0"])
def test_equal_rows_without_padding(name: str) -> None:
    """No mask at all: the fast path."""
    _compare(_model(side=SIDE), SPECS[name], ([3, "image", 5], [1, "image", 7], ["image", 8]), 8)


_WAYS = (("left", True), ("right", False), ("right", True), ("left", False))


@pytest.mark.parametrize(("name", "way"), dealt([*FIRST, *ATTENDING_OTHERWISE], _WAYS))
def test_a_direct_forward_gives_each_row_its_logits(name: str, way: tuple[Any, bool]) -> None:
    model = _model(side=SIDE)
    padding, cached = way
    cached = cached or strategy_from(SPECS[name]).strategy.temporal_part is not None  # refused without a cache
    inputs = prompt(model, *_RAGGED, padding=padding)
    places = {}
    if Need.KEYS in strategy_from(SPECS[name]).strategy.needed():
        # Rotated keys show absolute positions: they must not count padding, as generate sees to it.
        places = {"position_ids": (inputs["attention_mask"].cumsum(1) - 1).clamp(min=0)}
    with trimmed(model, SPECS[name], inputs), torch.no_grad():
        logits = model(**inputs, **places, use_cache=cached).logits
    assert logits.shape[1] == inputs["input_ids"].shape[1]
    for row in range(len(_RAGGED)):
        single = alone(inputs, row, SIDE * SIDE)
        with trimmed(model, SPECS[name], single), torch.no_grad():
            expected = model(**single, use_cache=cached).logits[0]
        found = logits[row][inputs["attention_mask"][row].bool()]
        text = single["input_ids"][0] != IMAGE
        assert deviation(found[text], expected[text]) < TOLERANCE
        assert deviation(found, expected) < TOLERANCE  # dropped columns are zero in both


@pytest.mark.parametrize("positions", ["keep", "renumber"])
@pytest.mark.parametrize("name", ["st3", "random-boundary=0", "vta"])
def test_decoding_by_direct_calls_is_generate(name: str, positions: str) -> None:
    """Whoever writes the loop by hand, without position ids, gets what generate gets."""
    if positions == "renumber" and name not in RENUMBERED:
        pytest.skip("no spatial part")
    model = _model(side=SIDE)
    spec = (SPECS if positions == "keep" else RENUMBERED)[name]
    inputs = prompt(model, [3, "image", 5], [4, "image", 4])
    with trimmed(model, spec, inputs) as session, torch.no_grad():
        ids, logits = generate(model, inputs, 6)
        annotate(session, inputs)
        out = model(**inputs, use_cache=True)
        found = [out.logits[:, -1]]
        for step in range(5):
            out = model(input_ids=ids[:, step : step + 1], past_key_values=out.past_key_values)
            found.append(out.logits[:, -1])
    assert deviation(torch.stack(found, dim=1), logits) < 1e-5
