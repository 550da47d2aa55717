"""Where vLLM is not installed: a strategy decides on a picture of a served tower as it does in the engine."""

import json

import pytest
import torch

import tokentrim
from tests.serve.vllm.tower import ServedLlava
from tokentrim.loading import load_image, load_model, prompt_inputs
from tokentrim.serve.vllm.asked import field_of, sent

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
