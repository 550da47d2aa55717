"""States and attention weights of every layer stand at the prompt's columns, however a call asks for them.

What they hold is compared with the masked reference in tests/generate/features.py.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.engine.cases import SPECS, deviation, trimmed
from tests.every_family import FAMILIES
from tests.models import alone, prompt, tiny_llava
from tokentrim.errors import UnsupportedError
from tokentrim.session import trim

_model = lru_cache(maxsize=1)(tiny_llava)
_ASKED = {"output_hidden_states": True, "output_attentions": True}


def _outputs(model: Any, spec: Any, inputs: dict[str, Tensor]) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """Hidden states of the prompt, then attention weights of the prompt and of a step, of every layer."""
    rows = len(inputs["input_ids"])
    positions = inputs["attention_mask"].cumsum(1).sub(1).clamp(min=0) if "attention_mask" in inputs else None
    mask = {"attention_mask": torch.ones_like(inputs["input_ids"]), **inputs}["attention_mask"]
    with trimmed(model, spec, inputs), torch.no_grad():
        out = model(**inputs, **_ASKED, position_ids=positions, use_cache=True)
        step = {"input_ids": torch.full((rows, 1), 7), "past_key_values": out.past_key_values, **_ASKED}
        step["attention_mask"] = torch.cat([mask, mask.new_ones(rows, 1)], dim=1)
        after = model(**step, position_ids=mask.sum(1, keepdim=True))
    return list(out.hidden_states), list(out.attentions), list(after.attentions)


@pytest.mark.parametrize("name", ["random-boundary=0", "fastv-query=last", "sparsevlm", "vta", "vta-ranking=frozen"])
def test_a_padded_row_has_the_outputs_of_the_row_alone(name: str) -> None:
    model = _model(side=4, attention="eager")
    inputs = prompt(model, [3, "image", 5], [2, "image", 4, "image", 7])
    together = _outputs(model, SPECS[name], inputs)
    for row in range(2):
        single = _outputs(model, SPECS[name], alone(inputs, row, 16))
        length = single[0][0].shape[1]
        for found, expected in zip(together[0], single[0], strict=True):
            assert deviation(found[row, -length:], expected[0]) < 1e-4
        for found, expected in zip(together[1], single[1], strict=True):
            assert deviation(found[row, :, -length:, -length:], expected[0]) < 1e-4
        for found, expected in zip(together[2], single[2], strict=True):
            assert found.shape[-1] == inputs["input_ids"].shape[1] + 1
            assert deviation(found[row, :, :, -length - 1 :], expected[0]) < 1e-4


def test_a_tuple_holds_the_same() -> None:
    model = _model(side=4, attention="eager")
    inputs = prompt(model, [3, "image", 5])
    with trimmed(model, SPECS["fastv-query=last"], inputs), torch.no_grad():
        out = model.model(**inputs, **_ASKED)
        first, _, states, maps, *_ = model.model(**inputs, **_ASKED, return_dict=False)
        some = model.model(**inputs, output_hidden_states=[-1, 2]).hidden_states
        inner = model.model.language_model(inputs_embeds=out.hidden_states[0], return_dict=False)[0]
    assert torch.equal(first, out.last_hidden_state)
    assert out.hidden_states[-1] is out.last_hidden_state
    for found, expected in zip((*states, *maps), (*out.hidden_states, *out.attentions), strict=True):
        assert torch.equal(found, expected)
    for number, (found, expected) in enumerate(zip(some, out.hidden_states, strict=True)):
        assert torch.equal(found, expected) if number in (2, 6) else found is None
    assert inner.shape == first.shape


def test_features_of_deeper_layers_are_never_among_a_layers_own() -> None:
    """transformers hooks a model that is first asked for states; that must not change what they are."""
    model = FAMILIES["qwen3-vl"].build()
    inputs = FAMILIES["qwen3-vl"].prompt(model, FAMILIES["qwen3-vl"].row)
    with trim(model, {"name": "random", "keep_ratio": 0.5, "boundary": 1}), torch.no_grad():
        first, second = (model(**inputs, output_hidden_states=True).hidden_states for _ in range(2))
    assert all(torch.equal(*pair) for pair in zip(first, second, strict=True))


def test_what_there_is_no_map_of_is_refused() -> None:
    model = _model(side=4, attention="eager")
    inputs = prompt(model, [3, "image", 5])
    with trimmed(model, SPECS["yopo"], inputs), pytest.raises(UnsupportedError, match="computed without a map"):
        model(**inputs, output_attentions=True)
    with trimmed(model, SPECS["vta"], inputs):
        model(**inputs, output_router_logits=False)
    with trimmed(model, SPECS["pool"], inputs), pytest.raises(UnsupportedError, match="experts are chosen"):
        model(**inputs, output_router_logits=True)
