"""Model arguments: what lmms-eval hands over becomes a checked configuration, or one paragraph."""

import pytest

from tokentrim.errors import ConfigError, UnknownNameError
from tokentrim.harness.options import read_options


def options(**arguments):
    return read_options({"pretrained": "testbed-plain", "strategy": "fastv", **arguments})


def test_what_nobody_set_is_left_to_the_defaults():
    found = options(batch_size=None, device=None, max_batch_size=None)
    assert (found.batch_size, found.device, found.dtype, found.ratios) == (1, "auto", "auto", {})


def test_the_harness_hands_numbers_over_as_text_and_we_read_them():
    assert options(batch_size="8").batch_size == 8


@pytest.mark.parametrize("text", ["{name: fastv, k: 3, keep_ratio: 0.25}", "fastv"])
def test_a_strategy_is_named_or_written_in_place(text):
    assert options(strategy=text).chosen.strategy.name == "fastv"


def test_a_strategy_may_stand_in_a_file(tmp_path):
    path = tmp_path / "st3.yaml"
    path.write_text("strategy: {name: st3, budget: {layer_mean_ratio: 0.3}}\n")
    found = options(strategy=str(path))
    assert (found.chosen.strategy.name, found.ratios) == ("st3", {"layer_mean_ratio": 0.3})


def test_a_budget_means_what_match_says():
    assert options(budget=0.25).ratios == {"layer_mean_ratio": 0.25}
    assert options(budget=0.25, match="flops_ratio").ratios == {"flops_ratio": 0.25}
    assert options(budget=0.25, match="kv_ratio", new_tokens=8).ratios == {"kv_ratio": 0.25}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"stratgy": "st3"}, "Did you mean 'strategy'"),
        ({"pretrained": None}, "pretrained of the model arguments must be given"),
        ({"strategy": None}, "strategy of the model arguments must be given"),
        ({"budget": 1.5}, "budget of the model arguments must"),
        ({"match": "tokens"}, "match of the model arguments must"),
        ({"batch_size": "auto"}, "batch_size of the model arguments must"),
        ({"device": "tpu"}, "device"),
        ({"dtype": "int8"}, "dtype of the model arguments must"),
        ({"budget": 0.3, "strategy": "{name: fastv, budget: {kv_ratio: 0.3}}"}, "must be given once"),
        ({"budget": 0.3, "match": "kv_ratio"}, "new_tokens of the model arguments must be given"),
        ({"strategy": "oracle"}, "without being told what an answer needs"),
        ({"strategy": "{name: fastv, keep_ration: 1}"}, "keep_ratio"),
    ],
)
def test_what_is_wrong_is_said(arguments, said):
    with pytest.raises(ConfigError, match=said):
        options(**arguments)


def test_an_unknown_strategy_is_answered_with_the_nearest():
    with pytest.raises(UnknownNameError, match="Did you mean 'st3'"):
        options(strategy="st33")
