"""A cache that is copied (one picture, many questions), saved, or filled by text alone."""

from __future__ import annotations

import copy
import gc
import io
from functools import lru_cache
from typing import Any

import pytest
import torch
from transformers import DynamicCache

from tests.engine.cases import SPECS, generate
from tests.models import prompt, tiny_llava
from tokentrim.errors import UnsupportedError
from tokentrim.session import trim

_model = lru_cache(maxsize=1)(tiny_llava)
_QUESTIONS = ([31, 32, 33], [41, 42, 43, 44], [51, 52])


@pytest.fixture
def model() -> Any:
    return _model(side=4)


def _ask(model: Any, inputs: Any, cache: Any, question: list[int]) -> torch.Tensor:
    ids = torch.cat([inputs["input_ids"], torch.tensor([question])], dim=1)
    return generate(model, {"input_ids": ids, "past_key_values": cache}, 5)[1]


@torch.no_grad()
@pytest.mark.parametrize("name", ["fastv-query=last", "random-boundary=2-seed=7", "sparsevlm", "st3", "vta-every=5"])
def test_each_copy_is_answered_and_counted_as_a_prompt_of_its_own(model: Any, name: str) -> None:
    inputs = prompt(model, [3, "image", 5])
    with trim(model, SPECS[name]) as session:
        wanted = [_ask(model, inputs, model(**inputs).past_key_values, question) for question in _QUESTIONS]
        apart = session.report()
    with trim(model, SPECS[name]) as session:
        base = model(**inputs).past_key_values
        gc.collect()
        before = sum(isinstance(one, torch.nn.Parameter) for one in gc.get_objects())
        copies = [copy.deepcopy(base) for _ in _QUESTIONS]
        assert sum(isinstance(one, torch.nn.Parameter) for one in gc.get_objects()) == before
        found = [_ask(model, inputs, *pair) for pair in zip(copies, _QUESTIONS, strict=True)]
        report = session.report()
        assert session.trace.steps == 5
        with pytest.raises(UnsupportedError, match="stay in the context"):
            torch.save(base, io.BytesIO())
    for one, alone in zip(found, wanted, strict=True):
        assert torch.equal(one, alone)
    for figure in ("rows", "decode_steps", "kv_mean_ratio", "kv_end_bytes", "flops_ratio"):
        assert getattr(report, figure) == getattr(apart, figure)
    assert "3 of 3 samples continued a copy" in report.notes[-1]


@torch.no_grad()
@pytest.mark.parametrize("name", ["fastv-query=last", "fastervlm"])
def test_text_alone_is_continued_untouched(model: Any, name: str) -> None:
    """By hand, from a copy, and by generate's guidance beside a prompt with a picture."""
    text, more = torch.tensor([[9, 10, 11]]), torch.tensor([[12, 13]])
    wanted = model(torch.cat([text, more], dim=1)).logits[:, -1]
    with trim(model, SPECS[name]):
        cache = model(text, use_cache=True).past_key_values
        for one in (copy.deepcopy(cache), cache):
            torch.testing.assert_close(model(more, past_key_values=one).logits[:, -1], wanted)
        with pytest.raises(UnsupportedError, match="bring text only"):
            model(**prompt(model, [3, "image", 5]), past_key_values=cache)
        guided = generate(model, prompt(model, [3, "image", 5]), 4, guidance_scale=1.5, negative_prompt_ids=text)[0]
        assert guided.shape == (1, 4)
    with trim(model, SPECS[name]), pytest.raises(UnsupportedError, match="filled inside this context"):
        model(more, past_key_values=cache)


@torch.no_grad()
def test_the_cache_of_one_model_is_not_continued_on_another(model: Any) -> None:
    other = tiny_llava(seed=1)
    with trim(model, SPECS["st3"]), trim(other, SPECS["st3"]):
        cache = model(**prompt(model, [3, "image", 5]), use_cache=True).past_key_values
        with pytest.raises(UnsupportedError, match="one that another model's context filled"):
            other(torch.tensor([[5]]), past_key_values=cache)
        model(torch.tensor([[5]]), past_key_values=cache)


@torch.no_grad()
def test_a_cache_whose_step_was_cut_short_is_not_continued(model: Any) -> None:
    inputs, token = prompt(model, [3, "image", 5]), torch.tensor([[5]])
    with trim(model, SPECS["st3"]):
        cache = model(**inputs, past_key_values=DynamicCache()).past_key_values
        handle = model.model.language_model.layers[3].mlp.register_forward_pre_hook(lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            model(token, past_key_values=cache)
        handle.remove()
        with pytest.raises(UnsupportedError, match="cut short"):
            model(token, past_key_values=cache)
