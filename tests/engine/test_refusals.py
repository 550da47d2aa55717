"""What would come out wrong is refused, by an error of ours, before a token is made."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import pytest
import torch
from transformers import DynamicCache, StaticCache

from tests.engine.cases import SPECS, generate, trimmed
from tests.engine.probes import Probe
from tests.models import images, prompt, row, tiny_llava
from tokentrim.engine import refusals
from tokentrim.errors import DataError, UnsupportedError
from tokentrim.session import trim

_model = lru_cache(maxsize=4)(tiny_llava)


@pytest.fixture
def model() -> Any:
    return _model(side=4)


@pytest.fixture
def inputs(model: Any) -> dict[str, torch.Tensor]:
    return prompt(model, [3, "image", 5])


def test_a_new_image_on_an_old_cache(model: Any, inputs: Any) -> None:
    with trimmed(model, SPECS["st3"], inputs):
        cache = model(**inputs, use_cache=True).past_key_values
        with pytest.raises(UnsupportedError, match="bring text only"):
            model(input_ids=row(model, [2, "image", 1])[None], pixel_values=images(1, model), past_key_values=cache)


def test_a_static_cache(model: Any, inputs: Any) -> None:
    static = StaticCache(config=model.config.text_config, max_cache_len=64)
    with trimmed(model, SPECS["st3"], inputs), pytest.raises(UnsupportedError, match="plain DynamicCache"):
        model.generate(**inputs, past_key_values=static, max_new_tokens=3)


@pytest.mark.parametrize("implementation", ["static", "offloaded", "quantized"])
def test_another_kind_of_cache(model: Any, inputs: Any, implementation: str) -> None:
    if implementation == "quantized":
        pytest.importorskip("optimum.quanto")
    with trimmed(model, SPECS["st3"], inputs), pytest.raises(UnsupportedError, match="plain DynamicCache"):
        model.generate(**inputs, cache_implementation=implementation, max_new_tokens=3)


def test_a_trimmed_cache_outside_its_context(model: Any, inputs: Any) -> None:
    with trimmed(model, SPECS["st3"], inputs):
        first = model.generate(**inputs, max_new_tokens=3, do_sample=False, return_dict_in_generate=True)
    again = {"input_ids": first.sequences, "past_key_values": first.past_key_values, "max_new_tokens": 3}
    with pytest.raises(UnsupportedError, match="inside the context that filled it"):
        model.generate(**again)
    with trimmed(model, SPECS["st3"], inputs), pytest.raises(UnsupportedError, match="inside the context"):
        model.generate(**again)


def test_a_cache_that_was_filled_outside(model: Any, inputs: Any) -> None:
    for start in (inputs, prompt(model, [7])):
        first = model.generate(**start, max_new_tokens=3, do_sample=False, return_dict_in_generate=True)
        with trimmed(model, SPECS["st3"], inputs), pytest.raises(UnsupportedError, match="filled inside this context"):
            model.generate(input_ids=first.sequences, past_key_values=first.past_key_values, max_new_tokens=3)


def test_an_image_after_a_text_prompt(model: Any, inputs: Any) -> None:
    with trimmed(model, SPECS["st3"], inputs):
        cache = model(**prompt(model, [7]), past_key_values=DynamicCache()).past_key_values
        with pytest.raises(UnsupportedError, match="bring text only"):
            model(**inputs, past_key_values=cache)


@pytest.mark.parametrize(
    "change", [lambda n: (1, 1, n, n), lambda n: (1, n - 2), lambda n: (1, n + 1), lambda n: (2, n)]
)
def test_a_mask_of_another_form(model: Any, inputs: Any, change: Any) -> None:
    mask = torch.ones(change(inputs["input_ids"].shape[1]), dtype=torch.long)
    with trimmed(model, SPECS["st3"], inputs), pytest.raises(UnsupportedError, match="be 2-D"):
        model(**{**inputs, "attention_mask": mask})


@pytest.mark.parametrize("name", ["random-boundary=0", "fastv-query=last", "yopo"])
def test_samples_packed_into_one_row(model: Any, name: str) -> None:
    inputs = prompt(model, [3, "image", 5, "image", 4])
    packed = {**inputs, "position_ids": torch.cat([torch.arange(24), torch.arange(20)])[None], "use_cache": False}
    ones = torch.ones_like(inputs["input_ids"])
    with trimmed(model, SPECS[name], inputs):
        with pytest.raises(UnsupportedError, match="hold one sample"):
            model(**packed)
        with pytest.raises(UnsupportedError, match="hold one sample"):
            model(**inputs, attention_mask=ones, cu_seq_lens_q=torch.tensor([0, 24, 44]))
        # What transformers takes for one sample is one.
        model(**packed, attention_mask=ones)
        model(**{**packed, "use_cache": True})
        model(**{**packed, "position_ids": torch.arange(7, 51)[None]})


def test_packed_samples_are_kept_apart_where_nothing_is_pruned(model: Any) -> None:
    inputs = prompt(model, [3, "image", 5, "image", 4])
    inputs |= {"position_ids": torch.cat([torch.arange(24), torch.arange(20)])[None], "use_cache": False}
    expected = model(**inputs).logits
    with trimmed(model, {"name": "fastv", "keep_ratio": 1.0}, inputs):
        assert torch.equal(model(**inputs).logits, expected)


@pytest.mark.parametrize("name", ["random-boundary=0", "fastv-query=last", "vta"])
def test_an_answer_behind_padding(model: Any, name: str) -> None:
    inputs = prompt(model, [3, "image", 5], [6], [2, "image", 9], padding="right")
    with trimmed(model, SPECS[name], inputs):
        with pytest.raises(DataError, match=r"padded on the left.*rows \[0, 1\]"):
            model.generate(**inputs, max_new_tokens=2)
        assert model(**inputs).logits.shape[:2] == inputs["input_ids"].shape  # a row's own logits lie within


def test_a_temporal_strategy_without_a_cache(model: Any, inputs: Any) -> None:
    with trimmed(model, SPECS["st3"], inputs):
        with pytest.raises(UnsupportedError, match="have a KV cache"):
            model(**inputs, use_cache=False)
        with pytest.raises(UnsupportedError, match="have a KV cache"):
            model.generate(**inputs, use_cache=False, max_new_tokens=3)


@pytest.mark.parametrize("size", [7, 19])
@pytest.mark.parametrize("name", ["st3", "fastv-query=last", "random-boundary=0"])
def test_a_prompt_fed_in_chunks(model: Any, name: str, size: int) -> None:
    inputs = prompt(model, [3, "image", 1])
    with trimmed(model, SPECS[name], inputs):
        with pytest.raises(UnsupportedError, match="prefill_chunk_size"):
            model.generate(**inputs, max_new_tokens=3, prefill_chunk_size=size)
        assert model.generate(**inputs, max_new_tokens=3, prefill_chunk_size=20).shape == (1, 23)


def test_guesses_under_a_temporal_strategy(model: Any, inputs: Any) -> None:
    with trimmed(model, SPECS["st3"], inputs), pytest.raises(UnsupportedError, match="without a temporal strategy"):
        model.generate(**inputs, max_new_tokens=12, do_sample=False, prompt_lookup_num_tokens=3)


def test_gradient_checkpointing_around_the_hooks(inputs: Any, monkeypatch: Any) -> None:
    model = tiny_llava(side=4)
    getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)()
    model.train()
    monkeypatch.setattr(refusals, "hooks_stay_outside", lambda layers: False)
    with trimmed(model, SPECS["fastv-query=last"], inputs):
        with pytest.raises(UnsupportedError, match="gradient checkpointing"):
            model(**inputs, use_cache=False)
        model.eval()
        assert generate(model, inputs, 2)[0].shape == (1, 2)


def test_embeddings_instead_of_ids(model: Any, inputs: Any) -> None:
    embeds = model.get_input_embeddings()(inputs["input_ids"])
    with trimmed(model, SPECS["st3"], inputs), pytest.raises(UnsupportedError, match="input_ids"):
        model(inputs_embeds=embeds, pixel_values=inputs["pixel_values"])


@pytest.mark.parametrize("backbone", ["mistral", "qwen2"])
def test_a_window_shorter_than_the_sequence(backbone: Any) -> None:
    text = {"use_sliding_window": True, "max_window_layers": 0} if backbone == "qwen2" else {}
    model = tiny_llava(backbone, side=4, sliding_window=26, **text)
    fits, too_long = prompt(model, [3, "image", 5]), prompt(model, [6, "image", 5])
    with trim(model, SPECS["fastv-query=last"]):
        with pytest.raises(UnsupportedError, match="sliding-window"):
            model.generate(**too_long, max_new_tokens=1)
        assert generate(model, fits, 3)[0].shape == (1, 3)
        with pytest.raises(UnsupportedError, match="sliding-window"):
            generate(model, fits, 4)


def test_cropping_into_the_prompt(model: Any, inputs: Any) -> None:
    with trimmed(model, SPECS["fastv-query=last"], inputs), torch.no_grad():
        cache = model(**inputs, use_cache=True).past_key_values
        model(input_ids=torch.tensor([[5, 6]]), past_key_values=cache)
        cache.crop(-1)
        assert cache.get_seq_length() == 25
        with pytest.raises(UnsupportedError, match="at most the 1 generated"):
            cache.crop(-2)


def test_evidence_that_does_not_fit(model: Any, inputs: Any) -> None:
    with trim(model, SPECS["oracle-boundary=1"]) as session:
        session.annotate(evidence=[torch.rand(15)])
        with pytest.raises(DataError, match="score its 16 visual tokens"):
            model(**inputs)
        with pytest.raises(Exception, match="be given it before each prompt"):
            model(**inputs)
        with pytest.raises(DataError, match="one entry per row"):
            session.annotate(new_tokens=[1, 2, 3])


def test_a_row_of_a_layer_that_does_not_call_its_attention(inputs: Any, monkeypatch: Any) -> None:
    own = tiny_llava(side=4)
    monkeypatch.setattr(own.model.language_model.layers[3], "forward", lambda hidden_states, **kwargs: hidden_states)
    cut = {"name": "pyramiddrop", "boundaries": [3]}
    with trim(own, cut), pytest.raises(UnsupportedError, match=r"NEXT_ROW.*LlamaDecoderLayer"):
        own(**inputs)


def test_a_final_norm_that_cannot_be_told(model: Any) -> None:
    own, probe = tiny_llava(side=4), Probe()
    own.model.language_model.other_norm = torch.nn.LayerNorm(64)
    with pytest.raises(UnsupportedError, match=r"final-norm.*LlamaModel"):
        trim(own, probe)
    trim(model, probe)


@pytest.mark.parametrize(
    "spec", [{"name": "visionzip", "merged": "behind"}, {"name": "prumerge", "order": "attention"}]
)
def test_tokens_behind_the_image_where_another_follows(model: Any, spec: dict[str, Any]) -> None:
    spec = {**spec, "keep_ratio": 0.5, "positions": "renumber"}
    with trim(model, spec):
        model(**prompt(model, [3, "image", 5], [9]))
        with pytest.raises(UnsupportedError, match="hold one image in each row; got 'several images'"):
            model(**prompt(model, [3, "image", 2, "image", 5]))
