"""``none`` replaces nothing, and still tells what was asked of the model."""

from __future__ import annotations

import threading
from functools import lru_cache
from typing import Any

import pytest
import torch
from transformers import DynamicCache

from tests.engine.cases import SPECS
from tests.generate.features import RECENT
from tests.models import images, prompt, row, tiny_llava
from tokentrim.engine.tokens.cache import trimmed
from tokentrim.errors import UnsupportedError
from tokentrim.session import trim

_model = lru_cache(maxsize=2)(tiny_llava)
_GREEDY: dict[str, Any] = {"max_new_tokens": 4, "do_sample": False}


def _reported(**options: Any) -> tuple[int, int, float, int, int]:
    model = _model(side=4)
    inputs = prompt(model, [3, "image", 5], [2, "image", 4, "image", 1])
    with trim(model, "none") as session:
        model.generate(**inputs, **_GREEDY, **options)
        report, trace = session.report(), session.trace
    return report.prompts, report.decode_steps, report.n_visual, len(trace.kept(5, 1)), len(trace.cached(0, 3, 0))


@pytest.mark.parametrize(
    "options",
    [{}, {"prefill_chunk_size": 7}, {"prefill_chunk_size": 40}, {"cache_implementation": "static"}],
    ids=str,
)
def test_the_account_does_not_depend_on_how_it_runs(options: dict[str, Any]) -> None:
    if options.get("prefill_chunk_size", 99) < 24 and not RECENT:
        pytest.skip("this release of transformers cannot do it, with and without tokentrim")
    assert _reported(**options) == (1, 3, 24.0, 32, 16)


def test_no_cache_is_replaced() -> None:
    model = _model(side=4)
    with trim(model, "none"):
        cache = model(**prompt(model, [3, "image", 5]), past_key_values=DynamicCache()).past_key_values
        assert not trimmed(cache)
        assert cache.get_seq_length() == 24


def test_guesses_are_no_part_of_the_prompt() -> None:
    model = _model(side=4)
    inputs = prompt(model, [3, "image", 5])
    inputs["input_ids"][0, -4:] = torch.tensor([7, 8, 7, 8])
    with trim(model, "none") as session:
        model.generate(**inputs, **_GREEDY, prompt_lookup_num_tokens=3)
        assert session._latest is not None
        assert session._latest.length == 24
        assert session._latest.n_text == (8,)


def test_a_picture_of_a_later_turn_joins_the_prompt() -> None:
    model = _model(side=4)
    with trim(model, "none") as session:
        first = model.generate(**prompt(model, [3, "image", 5]), **_GREEDY, return_dict_in_generate=True)
        follow = torch.cat([first.sequences, row(model, [1, "image", 2])[None]], dim=1)
        model.generate(
            input_ids=follow, pixel_values=images(1, model, 4), past_key_values=first.past_key_values, **_GREEDY
        )
        report = session.report()
    assert (report.prompts, report.n_visual, report.decode_steps) == (1, 32.0, 6)


@pytest.mark.parametrize("name", ["none", "st3"])
def test_one_model_in_two_threads_is_refused(name: str) -> None:
    model = tiny_llava(side=4)
    inputs = prompt(model, [3, "image", 5])
    inside, leave, failed = threading.Event(), threading.Event(), list[BaseException]()
    with trim(model, SPECS[name]):
        expected = model.generate(**inputs, **_GREEDY)

        def wait(*_: Any) -> None:
            inside.set()
            assert leave.wait(30)

        def other() -> None:
            assert inside.wait(30)
            try:
                model(**inputs)
            except UnsupportedError as error:
                failed.append(error)
            leave.set()

        thread = threading.Thread(target=other)
        handle = model.model.language_model.layers[3].mlp.register_forward_pre_hook(wait)
        thread.start()
        found = model.generate(**inputs, **_GREEDY)
        thread.join()
        handle.remove()
    assert torch.equal(found, expected)
    assert "one forward at a time" in str(failed[0])
