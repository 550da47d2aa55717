"""What vLLM may be asked for, checked before an engine starts; none of this needs vLLM."""

import json
from types import SimpleNamespace

import pytest

from tokentrim.errors import ConfigError, TokentrimError, UnknownNameError, UnsupportedError
from tokentrim.loading import describe
from tokentrim.plugins.loader import registry
from tokentrim.serve.vllm import asked
from tokentrim.serve.vllm.limits import VllmLimits
from tokentrim.serve.vllm.switch import switch

SERVED = {
    "divprune", "fastervlm", "hiprune", "hired", "holov", "none", "pool", "random", "scope", "uniform", "vidcom2",
    "vispruner", "visionzip", "vtc-cls",
}  # fmt: skip
"""Of our own strategies, with their defaults, on LLaVA."""


@pytest.fixture(scope="module")
def llava():
    return asked.PrunedFamily.of(describe("testbed").config)


def asking(given):
    config = describe("testbed").config
    config.tokentrim = given
    return config


def test_every_strategy_is_served_or_refused_by_name(llava):
    served, refused = set(), {}
    for name in registry("strategy").names():
        try:
            asked.require_servable(asked.of_server({"strategy": {"name": name}}), llava)
            served.add(name)
        except TokentrimError as error:
            refused[name] = str(error)
    assert served == SERVED
    assert not [name for name, said in refused.items() if name not in said]


@pytest.mark.parametrize(
    ("strategy", "said"),
    [
        (
            {"name": "fastv"},
            r"'fastv' in vLLM must act before the language model alone; got 'boundaries \[2\], inside",
        ),
        ({"name": "random", "boundary": 3}, r"boundaries \[3\]"),
        ({"spatial": {"name": "divprune"}, "temporal": {"name": "vta"}}, "decode steps"),
        ({"name": "yopo"}, "edits attention"),
        ({"name": "cdpruner"}, "before it knows the question"),
        ({"name": "tome"}, "merge nothing"),
        ({"name": "scissor"}, "makes room for a picture's tokens before it is encoded"),
        ({"name": "fastervlm", "block": -1}, r"up to the one that makes the features; got \[-1\]"),
        ({"name": "divprune", "positions": "keep"}, "positions of strategy 'divprune'.*must be renumber; got 'keep'"),
        ({"name": "divprune", "keep_count": 0}, "keep a token of every picture at least"),
    ],
)
def test_refusals_say_why(llava, strategy, said):
    with pytest.raises(TokentrimError, match=said):
        asked.require_servable(asked.of_server({"strategy": strategy}), llava)


@pytest.mark.parametrize(
    ("given", "error", "said"),
    [
        ("divprune", ConfigError, "hf_overrides.tokentrim must be a mapping"),
        ({"strategy": "divprun"}, UnknownNameError, "Did you mean 'divprune'"),
        ({"strategy": {"name": "divprune", "keep_rato": 1}}, ConfigError,
         r"hf_overrides\.tokentrim\.strategy\.keep_rato: .*Did you mean 'keep_ratio'"),
        ({"strategi": "divprune"}, ConfigError, "Did you mean 'strategy'"),
        ({"strategy": "divprune", "model": "testbed"}, ConfigError, "vLLM's own argument"),
        ({"strategy": "divprune", "structure": "prune"}, ConfigError, "line ends stay"),
    ],
)  # fmt: skip
def test_what_a_server_is_asked_for_is_checked_as_everywhere(given, error, said):
    with pytest.raises(error, match=said):
        asked.of_server(given)


def test_an_unknown_strategy_is_placed_once():
    for ask, place in ((asked.of_server, "hf_overrides"), (asked.of_request, "mm_processor_kwargs")):
        with pytest.raises(UnknownNameError, match=rf"^{place}\.tokentrim\.strategy\.name: the strategy must be"):
            ask({"strategy": {"name": "divprun"}})


def test_a_request_names_no_files():
    with pytest.raises(ConfigError, match="must be a mapping with a registered name"):
        asked.of_request({"strategy": "st3.yaml"})
    with pytest.raises(ConfigError, match="file of strategy 'replay' in a request must not be set"):
        asked.of_request({"strategy": {"spatial": [{"name": "replay", "file": "trace.safetensors"}]}})
    spec = asked.of_request({"strategy": {"name": "uniform", "pattern": "stride", "keep_ratio": 0.5}})
    assert spec.strategy.label() == "uniform(keep_ratio=0.5, pattern=stride)"


def test_counts_are_those_of_a_picture(llava):
    text = asked.as_text(asked.of_server({"strategy": {"name": "random", "keep_ratio": 0.25}}))
    assert [asked.kept(text, llava.shape, n) for n in (4, 100, 101)] == [1, 25, 25]
    with pytest.raises(ConfigError, match="keep a token of every picture at least; got '0 of 1'"):
        asked.kept(text, llava.shape, 1)
    budget = asked.of_server({"strategy": {"name": "random", "budget": {"layer_mean_ratio": 0.5}}})
    assert asked.kept(asked.as_text(budget), llava.shape, 100) == 50
    assert asked.kept("", llava.shape, 100) == 100
    assert asked.received([asked.sent(text), asked.sent("")]) == [text, ""]


def test_a_config_becomes_one_that_prunes_once():
    config = asking({"strategy": {"name": "divprune", "keep_ratio": 0.25}})
    switch(config)
    assert config.architectures == ["TokentrimLlava"]
    assert config.tokentrim["strategy"]["keep_ratio"] == 0.25
    before = json.dumps(config.tokentrim)
    switch(config)
    assert json.dumps(config.tokentrim) == before


def test_other_models_are_refused():
    config = asking({"strategy": "divprune"})
    config.architectures = ["BakLlavaForConditionalGeneration"]
    with pytest.raises(UnsupportedError, match="must be LlavaForConditionalGeneration; got"):
        switch(config)
    with pytest.raises(UnsupportedError, match="of a family among llava"):
        asked.PrunedFamily.of(SimpleNamespace(model_type="paligemma"))


@pytest.mark.parametrize(
    ("part", "name"),
    [
        ("parallel", "tensor_parallel_size"),
        ("parallel", "pipeline_parallel_size"),
        ("compiled", "compile_mm_encoder"),
        ("pictures", "video_pruning_rate"),
        ("whole", "speculative_config"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(part, name):
    parallel = SimpleNamespace(tensor_parallel_size=1, pipeline_parallel_size=1)
    compiled = SimpleNamespace(compile_mm_encoder=False, cudagraph_mm_encoder=False)
    pictures = SimpleNamespace(mm_processor_kwargs=None)
    whole = SimpleNamespace(
        parallel_config=parallel, compilation_config=compiled, speculative_config=None,
        model_config=SimpleNamespace(multimodal_config=pictures),
    )  # fmt: skip
    VllmLimits.verify_and_update_config(whole)
    parts = {"parallel": parallel, "compiled": compiled, "pictures": pictures, "whole": whole}
    setattr(parts[part], name, 2)
    with pytest.raises(UnsupportedError, match=f"{name} of vLLM must be left out where tokentrim prunes"):
        VllmLimits.verify_and_update_config(whole)
