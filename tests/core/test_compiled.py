"""Compiled decoding answers as decoding does, and says what it did not compile."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.core.cases import deviation, generate
from tests.every_family import FAMILIES
from tests.models import prompt, tiny_llava
from tokentrim.compiled import bucket
from tokentrim.session import trim

# The compiler's own modules use what torch is about to drop.
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")]
STEPS = 10


@lru_cache(maxsize=4)
def _model(**options: Any) -> Any:
    return tiny_llava(side=4, layers=2, **options)


def _ragged(model: Any) -> dict[str, torch.Tensor]:
    return prompt(model, [3, "image", 5], [9], [2, "image", 4, "image", 7])


def _both(model: Any, spec: Any, inputs: dict[str, torch.Tensor], **options: Any) -> tuple[float, list[str]]:
    """(deviation of compiled from plain logits, notes of the compiled run); tokens must be equal."""
    with torch.inference_mode():
        with trim(model, spec):
            ids, logits = generate(model, inputs, STEPS, **options)
        with trim(model, spec, compile=True) as session:
            found_ids, found = generate(model, inputs, STEPS, **options)
            trace, report = session.trace, session.report()
    assert torch.equal(found_ids, ids)
    assert trace.steps == STEPS - 1 == report.decode_steps
    return deviation(found, logits), report.notes


@given(st.integers(1, 100_000))
def test_a_bucket_holds_what_it_is_for_and_a_quarter_more_at_most(columns: int) -> None:
    size = bucket(columns)
    assert columns <= size <= max(64, columns * 5 // 4 + 1)
    assert bucket(size) == size


@pytest.mark.parametrize(
    "spec",
    [
        "none",
        {"name": "random", "keep_ratio": 0.4},
        {"name": "fastv", "k": 1, "keep_ratio": 0.25},
        {"name": "vta", "ranking": "frozen", "horizon": 6},
        {"name": "st3", "start": 1, "stride": 1, "ranking": "frozen", "horizon": 6, "every": 3},
    ],
    ids=["none", "random", "fastv", "vta", "st3"],
)
def test_compiled_steps_answer_as_plain_ones(spec: Any) -> None:
    model = _model(kv_heads=2)
    found, notes = _both(model, spec, _ragged(model))
    assert found < 1e-5
    assert f"{STEPS - 1} of {STEPS - 1} decode forwards ran compiled" in notes


def test_what_ranks_anew_runs_plain_and_says_so() -> None:
    model = _model(kv_heads=2)
    found, notes = _both(model, {"name": "vta", "horizon": 6, "every": 2}, _ragged(model))
    assert found < 1e-5
    assert "ranks anew at each step" in notes[0]
    assert "of 9 decode forwards ran compiled (" in notes[0]


def test_beams_and_renumbered_positions_run_plain_and_say_so() -> None:
    model = _model(kv_heads=2)
    single = prompt(model, [3, "image", 5])
    with torch.inference_mode(), trim(model, "random", compile=True) as session:
        found = model.generate(**single, max_new_tokens=5, do_sample=False, num_beams=2)
        notes = session.report().notes
    with torch.inference_mode(), trim(model, "random"):
        assert torch.equal(found, model.generate(**single, max_new_tokens=5, do_sample=False, num_beams=2))
    assert "beams" in notes[0]
    _, notes = _both(model, {"name": "random", "positions": "renumber"}, single)
    assert notes[0].startswith(f"0 of {STEPS - 1} decode forwards ran compiled")
    assert "renumbered positions" in notes[0]


def test_a_longer_answer_than_announced_moves_into_larger_buffers() -> None:
    """A second turn on the same cache: several columns at once run plain, and the buffers grow."""
    model = _model(kv_heads=2)
    single = prompt(model, [3, "image", 5])
    answers: list[torch.Tensor] = []
    for compiled in (False, True):
        with torch.inference_mode(), trim(model, "random", compile=compiled) as session:
            out = model.generate(**single, max_new_tokens=60, do_sample=False, return_dict_in_generate=True)
            more = torch.cat([out.sequences, out.sequences[:, -30:].flip(1)], dim=1)
            out = model.generate(
                input_ids=more, past_key_values=out.past_key_values, max_new_tokens=30, do_sample=False
            )
            answers.append(out)
            notes = session.report().notes
    assert torch.equal(*answers)
    assert "several new tokens at once" in notes[0]


def test_the_model_is_left_as_it_was() -> None:
    model = _model(kv_heads=2)
    language_model = model.model.language_model
    before = dict(language_model.__dict__)
    with torch.inference_mode(), trim(model, "random", compile=True):
        model.generate(**prompt(model, [3, "image", 5]), max_new_tokens=3)
        assert "forward" in language_model.__dict__
    assert language_model.__dict__.keys() == before.keys()
    assert model.config.text_config._attn_implementation == "sdpa"


@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
def test_every_family_decodes_compiled(family: Any) -> None:
    model = family.model()
    found, notes = _both(model, {"name": "random", "keep_ratio": 0.5}, family.prompt(model, *family.ragged))
    assert found < 1e-5
    assert f"{STEPS - 1} of {STEPS - 1} decode forwards ran compiled" in notes
