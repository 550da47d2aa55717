"""The plugin is found by its entry point, ranks as it says, and prunes a model."""

import os

os.environ["TOKENTRIM_PLUGINS"] = "example"  # before tokentrim loads its plugins: the built-ins and this one

import pytest
import torch
from tokentrim_example_plugin.feature_norm import FeatureNorm
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

import tokentrim
from tokentrim.plugins import plugin_infos, registry

IMAGE, TOKENS = 99, 16


@pytest.fixture(scope="module")
def model():
    """A LLaVA with random weights: four decoder layers, one image = 16 visual tokens."""
    torch.manual_seed(0)
    config = LlavaConfig(
        text_config=LlamaConfig(
            vocab_size=100,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=4,
            num_attention_heads=2,
            num_key_value_heads=2,
            pad_token_id=0,
        ),
        vision_config=CLIPVisionConfig(
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=2,
            num_attention_heads=2,
            image_size=16,
            patch_size=4,
        ),
        image_token_id=IMAGE,
        image_seq_length=TOKENS,
    )
    return LlavaForConditionalGeneration(config).eval()


@pytest.fixture
def inputs():
    """One prompt: a word, an image, three words."""
    ids = torch.tensor([[1, *[IMAGE] * TOKENS, 5, 6, 7]])
    generator = torch.Generator().manual_seed(0)
    return {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "pixel_values": torch.randn(1, 3, 16, 16, generator=generator),
    }


def test_it_is_found_by_its_entry_point():
    entry = registry("strategy").entry("feature-norm")
    assert entry.origin.distribution == "tokentrim-example-plugin"
    assert registry("strategy").get("feature-norm") is FeatureNorm
    assert next(info for info in plugin_infos() if info.name == "example").status == "loaded"


def test_it_keeps_the_largest_norms(model, inputs):
    features = torch.cat(list(model.model.get_image_features(inputs["pixel_values"]).pooler_output))
    expected = features.norm(dim=-1).topk(4).indices.sort().values
    with tokentrim.trim(model, {"name": "feature-norm", "keep_ratio": 0.25}) as session, torch.no_grad():
        model.generate(**inputs, max_new_tokens=2, do_sample=False)
    for layer in range(4):
        assert torch.equal(session.trace.kept(layer), expected)


def test_keeping_everything_changes_nothing(model, inputs):
    with torch.no_grad():
        plain = model(**inputs).logits
        with tokentrim.trim(model, FeatureNorm(keep_ratio=1.0)):
            kept = model(**inputs).logits
    assert torch.equal(plain, kept)


def test_it_acts_at_its_boundary(model, inputs):
    with tokentrim.trim(model, FeatureNorm(keep_ratio=0.5, boundary=2)) as session, torch.no_grad():
        model(**inputs)
    assert [len(session.trace.kept(layer)) for layer in range(4)] == [16, 16, 8, 8]


def test_a_wrong_parameter_is_an_error_that_helps():
    with pytest.raises(tokentrim.ConfigError, match="Did you mean 'keep_ratio'"):
        tokentrim.TrimConfig(strategy={"name": "feature-norm", "keep_ration": 0.5})
