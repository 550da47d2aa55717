"""Where vLLM is not installed: pictures and videos of Qwen-VL are decided on as in the engine, DeepStack goes along."""

import json

import pytest
import torch

import tokentrim
from tests.qwen import prompt, tiny_qwen
from tests.serve.vllm.tower import Core
from tokentrim.errors import TokentrimError
from tokentrim.plugins.loader import registry
from tokentrim.serve.vllm import asked
from tokentrim.serve.vllm.trimmer import Trimmer

PICTURES = {"image": ("image", 5, 3), "video": ("video", 3, 2, 4)}


def encoded(model, **given):
    """What vLLM's tower makes: features of all depths beside each other."""
    (pixels, size) = (value for name, value in given.items() if name.startswith("pixel") or name.endswith("thw"))
    made = model.model.visual(pixels, grid_thw=size)
    return [torch.cat([made.pooler_output, *(getattr(made, "deepstack_features", None) or ())], dim=1)]


@pytest.mark.parametrize("modality", PICTURES)
@pytest.mark.parametrize("kind", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl"])
@pytest.mark.parametrize("name", ["uniform", "random", "divprune"])
def test_what_stays_is_what_the_engine_keeps(name, kind, modality):
    model, spec = tiny_qwen(kind), {"name": name, "keep_ratio": 0.5}
    inputs = prompt(model, [3, PICTURES[modality], 2])
    with tokentrim.trim(model, spec) as session, torch.no_grad():
        model(**inputs)
    trimmer = Trimmer.of(model.config, [Core(2, 1.0)], torch.nn.Identity())
    given = {key: value for key, value in inputs.items() if key.startswith("pixel") or key.endswith("thw")}
    with torch.no_grad():
        (whole,) = encoded(model, **given)
        field = {asked.field_of(modality): [asked.sent(json.dumps(spec))]}
        (one,) = trimmer.kept(modality, {**given, **field}, lambda **own: encoded(model, **own), width=64)
    assert one.places.tolist() == session.trace.kept(0).tolist()
    assert torch.equal(one.features, whole[one.places])
    assert whole.shape[1] == (3 if kind == "qwen3_vl" else 1) * 64


@pytest.mark.parametrize("kind", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl"])
def test_what_merges_moves_features_of_the_first_layer_alone(kind):
    """As in the engine, where a token that takes others in keeps its own features of depths."""
    model, spec = tiny_qwen(kind), {"name": "pool"}
    inputs = prompt(model, [3, ("image", 4, 4), 2])
    given = {key: value for key, value in inputs.items() if key.startswith("pixel") or key.endswith("thw")}
    field = {asked.field_of("image"): [asked.sent(json.dumps(spec))]}
    trimmer = Trimmer.of(model.config, [Core(2, 1.0)], torch.nn.Identity())
    with torch.no_grad():
        (whole,) = encoded(model, **given)
        (one,) = trimmer.kept("image", {**given, **field}, lambda **own: encoded(model, **own), width=64)
    assert not torch.allclose(one.features[:, :64], whole[one.places, :64])
    assert torch.equal(one.features[:, 64:], whole[one.places, 64:])


@pytest.mark.parametrize("kind", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl"])
def test_what_depends_on_what_is_seen_is_refused_for_videos_too(kind):
    family = asked.PrunedFamily.of(tiny_qwen(kind).config)
    served, refused = set(), {}
    for name in registry("strategy").names():
        try:
            asked.require_servable(asked.of_server({"strategy": {"name": name}}), family)
            served.add(name)
        except TokentrimError as error:
            refused[name] = str(error)
    assert not [name for name, said in refused.items() if name not in said]
    assert served >= {"divprune", "none", "pool", "random", "uniform", "vidcom2"}
    assert not served & {"dycoke", "evs", "framefusion", "prunevid", "scissor"}
