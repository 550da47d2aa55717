"""Where vLLM is not installed: a strategy decides on a picture of a served tower as it does in the engine."""

import json
from pathlib import Path

import pytest
import torch

import tokentrim
from tests.serve.vllm.tower import ServedLlava
from tokentrim.loading import load_image, load_model, prompt_inputs
from tokentrim.plugins import loader
from tokentrim.serve.vllm.asked import PrunedFamily, as_text, field_of, of_request, require_servable, sent

STRATEGIES = (
    {"name": "random", "keep_ratio": 0.5},
    {"name": "uniform", "keep_ratio": 0.25},
    {"name": "fastervlm", "keep_ratio": 0.25},
    {"name": "divprune", "keep_ratio": 0.25},
    {"name": "visionzip", "keep_ratio": 0.25},
    {"name": "visionzip", "keep_ratio": 0.25, "merged": "behind", "positions": "renumber"},
    {"name": "vispruner", "keep_ratio": 0.25},
    {"name": "scope", "keep_ratio": 0.25},
    {"name": "hiprune", "keep_ratio": 0.25},
    {"spatial": [{"name": "fastervlm", "keep_ratio": 0.5}, {"name": "divprune", "keep_ratio": 0.5}]},
)


@pytest.fixture(scope="module")
def testbed():
    model, processor = load_model("testbed", "cpu")
    images = [load_image("docs/examples/scene.png"), load_image("docs/examples/scene.png").rotate(90)]
    return model, processor, images, ServedLlava(model)


@pytest.fixture
def stranger(tmp_path, monkeypatch):
    """The example of a plugin, as if it were installed."""
    about = tmp_path / "tokentrim_example_plugin-0.1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: tokentrim-example-plugin\nVersion: 0.1.0\n")
    (about / "entry_points.txt").write_text("[tokentrim]\ntokentrim-example-plugin = tokentrim_example_plugin\n")
    with monkeypatch.context() as path:
        path.syspath_prepend(tmp_path)
        path.syspath_prepend(Path("docs/examples/tokentrim-example-plugin").resolve())
        path.setenv("TOKENTRIM_PLUGINS", "tokentrim-example-plugin")
        loader.load(again=True)
        yield "feature-norm"
    loader.load(again=True)


def test_a_strangers_strategy_decides_on_half_of_the_tokens(stranger, testbed):
    model, processor, images, served = testbed
    text = require_servable(of_request({"strategy": {"name": stranger}}), PrunedFamily.of(model.config))
    assert text == as_text(of_request({"strategy": {"name": stranger, "keep_ratio": 0.5}}))
    pixels = prompt_inputs(processor, ["color ?"], [images])["pixel_values"]
    given = {"pixel_values": pixels, field_of("image"): [sent(text)] * 2}
    whole = served.encode(pixels)
    for one, features in zip(served.trimmer.kept("image", given, served.encode), whole, strict=True):
        largest = features.norm(dim=-1).topk(len(features) // 2).indices
        assert sorted(one.places.tolist()) == sorted(largest.tolist())


@pytest.mark.parametrize("strategy", STRATEGIES, ids=lambda strategy: json.dumps(strategy)[:60])
def test_decides_as_the_engine_does(testbed, strategy):
    model, processor, images, served = testbed
    given = {
        "pixel_values": prompt_inputs(processor, ["color ?"], [images])["pixel_values"],
        field_of("image"): [sent(json.dumps(strategy)), sent("")],
    }
    first, whole = served.trimmer.kept("image", given, served.encode)
    entered = []
    hook = model.model.language_model.layers[0].register_forward_pre_hook(
        lambda module, args, kwargs: entered.append((args or (kwargs["hidden_states"],))[0]), with_kwargs=True
    )
    inputs = prompt_inputs(processor, ["color ?"], [images[:1]])
    with tokentrim.trim(model, strategy) as session, torch.no_grad():
        model(**inputs)
    hook.remove()
    start = int((inputs["input_ids"][0] == model.config.image_token_id).nonzero()[0])
    assert sorted(first.places.tolist()) == session.trace.kept(0).tolist()
    assert torch.allclose(entered[0][0, start : start + len(first.features)], first.features, atol=1e-4)
    assert whole.places.tolist() == list(range(len(whole.places)))  # no strategy: nothing goes
