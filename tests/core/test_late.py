"""Late projection: what boundary 0 drops is never projected, and nothing else notices."""

from __future__ import annotations

import functools
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

from tests import models, qwen
from tests.core.cases import deviation, generate
from tokentrim import planning, report
from tokentrim.adapter import Projector
from tokentrim.errors import EngineError
from tokentrim.late import LateProjection
from tokentrim.plan import plan
from tokentrim.session import adapter_of, trim

RANDOM = {"name": "random", "boundary": 0, "keep_ratio": 0.3}
ROWS: tuple[list[Any], ...] = ([3, "image", 5], [2, "image", 4, "image", 7], [9])
PARTS: tuple[list[Any], ...] = ([3, ("image", 3, 5), 5], [2, ("image", 2, 4), 4, ("video", 2, 2, 3), 7], [9])


def _llava(dtype: torch.dtype = torch.float32) -> tuple[Any, dict[str, Tensor]]:
    model = models.tiny_llava(side=4).to(dtype)
    inputs = models.prompt(model, *ROWS)
    return model, {name: value.to(dtype) if value.is_floating_point() else value for name, value in inputs.items()}


def _qwen(kind: Any) -> tuple[Any, dict[str, Tensor]]:
    model = qwen.tiny_qwen(kind)
    return model, qwen.prompt(model, *PARTS)


CASES: dict[str, Any] = {"llava": _llava, **{kind: (lambda kind=kind: _qwen(kind)) for kind in qwen.KINDS}}


@contextmanager
def projected(model: Any) -> Generator[list[tuple[int, ...]]]:
    """Shapes that the first matrix of every projector is handed."""
    shapes: list[tuple[int, ...]] = []
    undo: list[Any] = []
    for projector in adapter_of(model).locate(model).projectors:
        first = next(m for m in projector.module.modules() if isinstance(m, torch.nn.Linear))
        undo.append(first.register_forward_pre_hook(lambda _, args: shapes.append(tuple(args[0].shape))))
    try:
        yield shapes
    finally:
        for handle in undo:
            handle.remove()


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A function that switches waiting off."""
    return lambda: monkeypatch.setattr(planning, "projects_late", lambda *_: False)


@pytest.mark.parametrize("case", CASES)
def test_only_what_is_kept_is_projected(case: str, waits: Any) -> None:
    model, inputs = CASES[case]()
    with trim(model, RANDOM) as session, projected(model) as shapes:
        _, logits = generate(model, inputs, 4)
        kept = [len(session.trace.kept(0, row)) for row in range(3)]
    assert shapes
    assert all(torch.Size(shape[:-1]).numel() == 3 * max(kept) for shape in shapes)
    waits()
    with trim(model, RANDOM), projected(model) as whole:
        _, early = generate(model, inputs, 4)
    assert sum(torch.Size(shape).numel() for shape in whole) > sum(torch.Size(shape).numel() for shape in shapes)
    assert deviation(logits, early) < 1e-4


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("spec", [{**RANDOM, "keep_ratio": 1.0}, {"name": "text-only", "k": 0}], ids=["all", "none"])
def test_nothing_changes_where_all_or_nothing_is_kept(case: str, spec: Any, waits: Any) -> None:
    model, inputs = CASES[case]()
    with trim(model, spec):
        _, logits = generate(model, inputs, 4)
    waits()
    with trim(model, spec):
        assert torch.equal(logits, generate(model, inputs, 4)[1])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_numbers_are_exact_in_every_format(dtype: torch.dtype) -> None:
    module = torch.nn.Linear(8, 8, bias=False)
    projector = Projector(module.to(dtype), 8)
    waiting = LateProjection([projector])
    waiting.allowed = True
    states = torch.randn(2, 40_000, 8).to(dtype)
    with torch.no_grad(), waiting.waiting():
        marks = module(states[:1]), module(states[1:])
    picked = torch.tensor([[0, 7, 39_999], [128, 16_384, 20_001]])
    chosen = torch.stack([marks[0][0, picked[0]], marks[1][0, picked[1]]])
    wanted = module(torch.stack([states[0, picked[0]], states[1, picked[1]]]))
    with torch.no_grad():
        assert torch.equal(waiting.project(chosen, whole=False), wanted)
    assert module(states).shape == (2, 40_000, 8)  # it runs again
    assert not torch.equal(module(states)[0, 0], marks[0][0, 0])


@pytest.mark.parametrize("case", ["llava", "qwen2_5_vl"])
@pytest.mark.parametrize("options", [{"num_beams": 2}, {"num_return_sequences": 2, "do_sample": True}])
def test_rows_that_generate_repeats(case: str, options: dict[str, Any], waits: Any) -> None:
    model, inputs = CASES[case]()

    def answer() -> Any:
        torch.manual_seed(0)
        with trim(model, RANDOM):
            return generate(model, inputs, 4, **options)[0]

    found = answer()
    waits()
    assert torch.equal(found, answer())


def test_who_looks_at_features_sees_them() -> None:
    """A forward hands its caller the features; a hook on the projector is shown its output; so is a merging part."""
    model, inputs = _llava()
    with torch.no_grad():
        wanted = torch.cat(list(model(**inputs).image_hidden_states))
        with trim(model, RANDOM):
            assert torch.equal(torch.cat(list(model(**inputs).image_hidden_states)), wanted)
        seen: list[Tensor] = []
        handle = model.model.multi_modal_projector.register_forward_hook(lambda *a: seen.append(a[-1]))
        with trim(model, RANDOM):
            generate(model, inputs, 2)
        handle.remove()
        assert torch.equal(seen[0].flatten(0, 1), wanted.view_as(seen[0].flatten(0, 1)))
    for spec in ("pool", "vispruner"):
        with trim(model, spec) as session:
            assert not session._engine.late.projectors


def test_pictures_encoded_by_the_caller() -> None:
    model, inputs = _llava()
    with trim(model, RANDOM), torch.no_grad():
        ids, wanted = generate(model, inputs, 3)
        encoded = model.get_image_features(inputs["pixel_values"])
        rest = {name: value for name, value in inputs.items() if name != "pixel_values"}
        again = generate(model, rest, 3, mm_encoder_outputs={"image": encoded})
    assert deviation(again[1], wanted) < 1e-4
    assert torch.equal(again[0], ids)


def test_features_that_are_calculated_with_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    model, inputs = _llava()
    encode = type(model.model).get_image_features

    @functools.wraps(encode)
    def scaled(self: Any, *args: Any, **kwargs: Any) -> Any:
        found = encode(self, *args, **kwargs)
        found.pooler_output = [one * 0.3 for one in found.pooler_output]
        return found

    monkeypatch.setattr(type(model.model), "get_image_features", scaled)
    with trim(model, RANDOM), pytest.raises(EngineError, match="projector's output must only be rearranged"):
        generate(model, inputs, 2)


def test_a_failed_prompt_leaves_nothing_behind() -> None:
    model, inputs = _llava()
    layer = model.model.language_model.layers[0]

    def fail(*_: Any) -> None:
        raise RuntimeError("here")

    with trim(model, RANDOM) as session:
        _, wanted = generate(model, inputs, 2)
        handle = layer.register_forward_pre_hook(fail)
        with pytest.raises(RuntimeError, match="here"):
            generate(model, inputs, 2)
        handle.remove()
        assert not session._engine.late.waits()
        assert torch.equal(generate(model, inputs, 2)[1], wanted)
    assert "forward" not in model.model.multi_modal_projector.__dict__


@pytest.mark.parametrize("case", CASES)
def test_the_account_counts_what_was_projected(case: str) -> None:
    model, inputs = CASES[case]()
    with trim(model, RANDOM) as session:
        generate(model, inputs, 2)
        prompt = session._latest
    assert prompt is not None
    shape = adapter_of(model).locate(model).shape
    usages = report.usages(prompt, shape)
    for usage in usages:
        assert usage.projected == usage.layer_tokens[0] < usage.n_visual
        assert usage.prefill_flops_whole < usage.unpruned().prefill_flops_whole
    planned = plan(session.strategy, shape, usages[0].n_visual, usages[0].n_text, 2)
    assert planned.usage.projected == usages[0].projected
