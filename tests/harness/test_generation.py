"""Generation settings: a task's words become generate's arguments, and nothing is lost on the way."""

import pytest

from tokentrim.errors import ConfigError
from tokentrim.harness.generation import generation_of

GREEDY = {"do_sample": False, "num_beams": 1, "temperature": None, "top_p": None, "top_k": None}


@pytest.mark.parametrize("given", [None, {}, {"temperature": 0}, {"do_sample": False, "temperature": 0.7, "top_p": 1}])
def test_greedy_search_overrides_what_a_model_sets_for_sampling(given):
    found = generation_of(given, 64)
    assert (found.settings, found.max_new_tokens, found.until) == (GREEDY, 64, ())
    assert found.is_greedy


def test_a_temperature_samples():
    found = generation_of({"temperature": 0.7, "top_p": 0.9, "max_new_tokens": 5}, 64)
    assert found.settings == {"do_sample": True, "num_beams": 1, "temperature": 0.7, "top_p": 0.9}
    assert found.max_new_tokens == 5
    assert not found.is_greedy


def test_sampling_without_a_temperature_is_a_contradiction():
    with pytest.raises(ConfigError, match="temperature above 0"):
        generation_of({"do_sample": True, "temperature": 0}, 64)


def test_beams_and_whatever_else_generate_knows_are_passed_on():
    found = generation_of({"num_beams": 3, "repetition_penalty": 1.1, "length_penalty": None}, 64)
    assert found.settings == {**GREEDY, "num_beams": 3, "repetition_penalty": 1.1}
    assert not found.is_greedy


def test_settings_of_other_models_are_named_and_left_out():
    found = generation_of({"image_aspect_ratio": "original"}, 64)
    assert (found.settings, found.ignored) == (GREEDY, ("image_aspect_ratio",))


def test_an_answer_ends_before_the_first_stop_text():
    found = generation_of({"until": ["\n\n", "Q:", ""], "stop_sequences": "</s>"}, 64)
    assert found.until == ("\n\n", "Q:", "</s>")
    assert found.cut("yes Q: and\n\nmore") == "yes "
    assert found.cut("yes") == "yes"
    assert generation_of({"until": "stop"}, 64).until == ("stop",)


def test_equal_settings_share_a_batch_and_others_do_not():
    first = generation_of({"temperature": 0, "max_new_tokens": 8}, 64)
    assert first.key == generation_of({"max_new_tokens": 8}, 64).key
    assert first.key != generation_of({"max_new_tokens": 9}, 64).key
    assert first.key != generation_of({"max_new_tokens": 8, "until": ["x"]}, 64).key
