"""The generic adapter: families without an adapter of their own, under plain generate(), and what it refuses."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

from tests.engine.cases import deviation, generate
from tests.masked import masked_logits
from tokentrim.errors import AdapterError, UnsupportedError
from tokentrim.plugins.loader import registry
from tokentrim.selftest.running import subject_of
from tokentrim.selftest.shrink import build, small_config
from tokentrim.selftest.subject import Subject
from tokentrim.session import adapter_of, trim

TOLERANCE = 1e-4

# One grid per image, in one piece or tiles; images of any size; features pooled; another tower's grid given as shapes.
FAMILIES = {
    "aya_vision": "AyaVision",
    "deepseek_vl": "DeepseekVL",
    "lighton_ocr": "LightOnOcr",
    "vipllava": "VipLlava",
    "lfm2_vl": "Lfm2Vl",
}
SPECS: dict[str, Any] = {
    "random": {"name": "random", "keep_ratio": 0.4, "boundary": 0},
    "fastv": {"name": "fastv", "k": 2, "keep_ratio": 0.3},
    "st3": {"name": "st3", "start": 1, "stride": 2, "prune_ratio": 0.3, "horizon": 12},
    "renumbered": {"name": "random", "keep_ratio": 0.4, "boundary": 1, "positions": "renumber"},
}

_ROWS = ((3, 5), (11, 4), (1, 2))


@lru_cache(maxsize=8)
def family(name: str) -> Subject:
    stem = FAMILIES[name]
    results: list[Any] = []
    model_class = getattr(transformers, f"{stem}ForConditionalGeneration")
    found = subject_of(model_class, getattr(transformers, f"{stem}Config")(), _generic(), None, results)
    assert found is not None, results
    return found


def _generic() -> Any:
    return registry("adapter").get("generic")()


def prompt(subject: Subject, *rows: int) -> dict[str, Any]:
    return subject.maker.prompt(*(_ROWS[row] for row in rows), seeds=rows)


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("name", FAMILIES)
def test_dropping_is_masking_and_a_row_is_the_row_alone(name: str, spec: str) -> None:
    subject = family(name)
    model = subject.model
    assert adapter_of(model).name == "generic"
    with trim(model, SPECS[spec]) as session:
        ids, logits = generate(model, prompt(subject, 0, 1, 2), 6)
        together = session.trace
    for row in range(3):
        single = prompt(subject, row)
        with trim(model, SPECS[spec]) as session:
            own_ids, own = generate(model, single, 6)
            trace = session.trace
        assert ids[row].tolist() == own_ids[0].tolist()
        assert deviation(logits[row], own[0]) < TOLERANCE
        for layer in range(trace.n_layers):
            assert torch.equal(together.kept(layer, row), trace.kept(layer))
        assert len(trace.kept(3)) < subject.maker.length
        visual = single["input_ids"][0] == subject.maker.token
        renumber = SPECS[spec].get("positions") == "renumber"
        expected = masked_logits(model, single, own_ids[0][:-1], trace, visual=visual, renumber=renumber)
        assert deviation(own[0], expected[len(visual) - 1 :]) < TOLERANCE


@pytest.mark.parametrize("name", FAMILIES)
def test_keeping_everything_changes_no_bit_and_nothing_remains(name: str) -> None:
    subject = family(name)
    inputs = prompt(subject, 0, 1)
    before = generate(subject.model, inputs, 5)
    with trim(subject.model, {"name": "random", "keep_ratio": 1.0}):
        inside = generate(subject.model, inputs, 5)
    after = generate(subject.model, inputs, 5)
    for ids, logits in (inside, after):
        assert torch.equal(ids, before[0])
        assert torch.equal(logits, before[1])


def test_the_grid_of_an_image_that_is_no_square() -> None:
    subject = family("lighton_ocr")
    inputs = prompt(subject, 0, 1)
    with trim(subject.model, {"name": "random", "keep_ratio": 0.5}) as session:
        generate(subject.model, inputs, 1)
        grid = session.grid
    assert grid.row.tolist() == [[0, 0, 0, 1, 1, 1]] * 2
    assert grid.col.tolist() == [[0, 1, 2] * 2] * 2
    assert grid.image.tolist() == [[0] * 6] * 2


# ---------------------------------------------------------------------- refusals, by name

# model type -> what of it the reason names
REFUSED = {
    "PaliGemma": "plain masks: bidirectional attention",
}
UNKNOWN = {
    "Llama4": "chunked_attention",
    "Qwen3_5": "linear_attention",
    "Mllama": "cross-attention",
    "Blip2": "image_token_id",
}


def tiny(stem: str) -> Any:
    model_class = getattr(transformers, f"{stem}ForConditionalGeneration", None)
    if model_class is None:
        pytest.skip(f"transformers {transformers.__version__} has no {stem}")
    config = getattr(transformers, f"{stem}Config")()
    return build(model_class, small_config(config, window=4096), None)


@pytest.mark.parametrize("stem", REFUSED)
def test_what_fails_the_self_test_is_refused_with_the_reason(stem: str) -> None:
    with pytest.raises(UnsupportedError, match="pass the self-test on a small random copy") as caught:
        trim(tiny(stem), "none")
    assert REFUSED[stem] in str(caught.value)


@pytest.mark.parametrize("stem", UNKNOWN)
def test_what_has_another_layout_is_refused_with_the_reason(stem: str) -> None:
    with pytest.raises(AdapterError, match=r"belong to a known family \(.*Adapter generic") as caught:
        trim(tiny(stem), "none")
    assert UNKNOWN[stem] in str(caught.value)


def test_a_tower_that_is_not_read_refuses_its_readers() -> None:
    with pytest.raises(UnsupportedError, match=r"got \['vision-cls'\]. The generic adapter reads no vision tower"):
        trim(family("aya_vision").model, "fastervlm")


def test_a_resampler_has_no_grid() -> None:
    subject = tiny("Idefics2")
    with pytest.raises(UnsupportedError, match=r"got \['grid'\].*shows elsewhere"):
        trim(subject, "pool")
    trim(subject, "fastv")


def test_a_video_is_refused() -> None:
    model = tiny("Ovis2")
    model.config.video_token_id = 7
    ids: Tensor = torch.tensor([[3, 7, 7, 4]])
    with trim(model, "fastv"), pytest.raises(UnsupportedError, match=r"hold images alone; got 'a video'"):
        model(input_ids=ids)


def test_beyond_a_window_is_refused() -> None:
    config = small_config(transformers.AyaVisionConfig(), window=16)
    model = build(transformers.AyaVisionForConditionalGeneration, config, None)
    results: list[Any] = []
    subject = subject_of(type(model), transformers.AyaVisionConfig(), _generic(), None, results)
    assert subject is not None
    with (
        trim(model, {"name": "random", "keep_ratio": 0.5}),
        pytest.raises(UnsupportedError, match="at most the window"),
    ):
        model(**prompt(subject, 0))


def test_families_with_an_adapter_of_their_own_keep_it() -> None:
    model = tiny("Llava")
    assert adapter_of(model).name == "llava"
