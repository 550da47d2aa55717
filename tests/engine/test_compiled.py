"""Compiled decoding answers as decoding does, and says what it did not compile.

What torch makes of the captured graph is torch's: but for one test, the graph runs as it was captured, which takes
seconds less each time and goes through every line of ours.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import pytest
import torch
from hypothesis import given, strategies as st

from tests.engine.cases import deviation, generate
from tests.engine.probes import StepProbe
from tests.every_family import FAMILIES
from tests.models import prompt, tiny_llava
from tokentrim.engine.compiled import bucket
from tokentrim.session import trim

# The compiler's own modules use what torch is about to drop.
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning"),
    pytest.mark.usefixtures("graphs_alone"),
]
STEPS = 10


@lru_cache(maxsize=4)
def _model(**options: Any) -> Any:
    return tiny_llava(**{"side": 4, "layers": 2, **options})


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
        {"name": "st3", "start": 1, "stride": 1, "evict": True, "ranking": "frozen", "horizon": 6, "every": 3},
    ],
    ids=["none", "random", "fastv", "vta", "st3"],
)
def test_compiled_steps_answer_as_plain_ones(spec: Any) -> None:
    model = _model(kv_heads=2)
    found, notes = _both(model, spec, _ragged(model))
    assert found < 1e-5
    assert f"{STEPS - 1} of {STEPS - 1} decode forwards ran compiled" in notes


def test_steps_of_generated_kernels_answer_as_plain_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    model = _model(kv_heads=2, layers=1)
    # Which vector units there are is found by compiling for each.
    monkeypatch.setattr("torch._inductor.config.cpp.vec_isa_ok", False)
    found, notes = _both(model, {"name": "vta", "horizon": 30}, _ragged(model))  # one graph: every step lets entries go
    assert found < 1e-5
    assert f"{STEPS - 1} of {STEPS - 1} decode forwards ran compiled" in notes


@pytest.mark.parametrize(
    "spec",
    [
        {"name": "vta", "horizon": 6, "ranking": "current"},
        {"name": "st3", "start": 1, "stride": 1, "prune_ratio": 0.3, "horizon": 8, "every": 2, "evict": True},
        {"name": "st3", "start": 1, "stride": 1, "prune_ratio": 0.3, "horizon": 8},
        {"name": "vta", "horizon": 8, "evict": False, "ranking": "accumulated", "every": 2},
    ],
    ids=["vta", "st3 evicting", "st3", "vta returning"],
)
def test_what_ranks_anew_chooses_the_same_entries(spec: Any) -> None:
    model = _model(kv_heads=2)
    inputs = _ragged(model)
    with torch.inference_mode():
        with trim(model, spec) as session:
            ids, logits = generate(model, inputs, STEPS)
            trace, report = session.trace, session.report()
        with trim(model, spec, compile=True) as session:
            found_ids, found = generate(model, inputs, STEPS)
            assert session.trace.rows_equal(trace)
            compiled = session.report()
    assert torch.equal(found_ids, ids)
    assert deviation(found, logits) < 1e-5
    assert compiled.kv_mean_bytes == report.kv_mean_bytes
    assert compiled.kv_read_ratio == report.kv_read_ratio
    assert compiled.pruning_events == report.pruning_events
    assert f"{STEPS - 1} of {STEPS - 1} decode forwards ran compiled" in compiled.notes


def test_entries_that_are_only_masked_leave_when_a_step_runs_plain() -> None:
    """A second turn of several tokens after compiled steps with evictions, of rows that differ in length."""
    model = _model(kv_heads=2)
    inputs = _ragged(model)
    answers: list[tuple[torch.Tensor, torch.Tensor]] = []
    for compiled in (False, True):
        with torch.inference_mode(), trim(model, {"name": "vta", "horizon": 30}, compile=compiled) as session:
            out = model.generate(**inputs, max_new_tokens=6, do_sample=False, return_dict_in_generate=True)
            mask = inputs["attention_mask"]
            turn = torch.cat([out.sequences, out.sequences[:, -3:]], dim=1)
            mask = torch.nn.functional.pad(mask, (0, turn.shape[1] - mask.shape[1]), value=1)
            out = model.generate(
                input_ids=turn, attention_mask=mask, past_key_values=out.past_key_values, max_new_tokens=4,
                do_sample=False, return_dict_in_generate=True, output_logits=True,
            )  # fmt: skip
            answers.append((out.sequences, torch.stack(out.logits, dim=1)))
            notes = session.report().notes
            stored = [layer.stored_columns for layer in out.past_key_values.layers]
            held = [max(layer.n_visual) for layer in out.past_key_values.layers]
    assert torch.equal(answers[0][0], answers[1][0])
    assert deviation(answers[1][1], answers[0][1]) < 1e-5
    assert "several new tokens at once" in notes[0]
    assert all(n < 32 for n in held)
    assert all(columns < inputs["input_ids"].shape[1] + 12 for columns in stored)


@pytest.mark.parametrize("spec", ["random", {"name": "vta", "horizon": 9}], ids=["random", "vta"])
def test_beams_run_plain_and_say_so(spec: Any) -> None:
    model = _model(kv_heads=2)
    single = prompt(model, [3, "image", 5])
    with torch.inference_mode(), trim(model, spec, compile=True) as session:
        found = model.generate(**single, max_new_tokens=5, do_sample=False, num_beams=2)
        notes = session.report().notes
    with torch.inference_mode(), trim(model, spec):
        assert torch.equal(found, model.generate(**single, max_new_tokens=5, do_sample=False, num_beams=2))
    assert "beams" in notes[0]


def test_renumbered_positions_run_plain_and_say_so() -> None:
    model = _model(kv_heads=2)
    _, notes = _both(model, {"name": "random", "positions": "renumber"}, prompt(model, [3, "image", 5]))
    assert notes[0].startswith(f"0 of {STEPS - 1} decode forwards ran compiled")
    assert "renumbered positions" in notes[0]


def test_a_part_that_reads_more_than_the_row_runs_plain_and_says_so() -> None:
    model = _model(kv_heads=2)
    _, notes = _both(model, StepProbe(), prompt(model, [3, "image", 5]))
    assert "reads more than its layer's own rows" in notes[0]


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


_ALIKE = ("llava", "llava-next", "llava-next-video", "smolvlm", "qwen2-vl", "qwen3-vl-moe")
"""Their decoders do a step as LLaVA's, of which the rest of this file is, or as Qwen2.5-VL's and Qwen3-VL's."""


@pytest.mark.parametrize("name", [name for name in FAMILIES if name not in _ALIKE])
def test_decoders_of_other_families_do_compiled_steps(name: str) -> None:
    family = FAMILIES[name]
    model = family.model()
    found, notes = _both(model, {"name": "random", "keep_ratio": 0.5}, family.prompt(model, *family.ragged))
    assert found < 1e-5
    assert f"{STEPS - 1} of {STEPS - 1} decode forwards ran compiled" in notes
