"""Every geometry: what its config says, what a prompt of it holds, and that a bench of it counts the same."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.bench.small import FULL, SMALL, counterpart
from tokentrim.bench import GEOMETRIES, BenchOptions, KernelFloor, markdown, run
from tokentrim.bench.families.base import IMAGE
from tokentrim.bench.subject import BenchSubject, shape_for
from tokentrim.bench.throughput import run_throughput
from tokentrim.config.specs import StrategySpec, strategy_from
from tokentrim.contracts.adapter import Adapter
from tokentrim.counting.published import PRESETS
from tokentrim.counting.shape import ModelShape
from tokentrim.errors import ConfigError
from tokentrim.loading import require_supported
from tokentrim.plugins.loader import registry
from tokentrim.runs.stopwatch import generate
from tokentrim.session import trim

IMAGES, BATCH, TEXT = 2, 3, 6


def options_of(name: str, **more: Any) -> BenchOptions:
    words: dict[str, Any] = {
        "strategies": ("random",), "images": IMAGES, "batch": BATCH, "prompt_tokens": TEXT, "new_tokens": 3,
        "repeats": 1, "device": "cpu", **more,
    }  # fmt: skip
    return BenchOptions(geometry=name, **words)


def shape_of(name: str) -> ModelShape:
    """From the config alone, for the bench's pictures."""
    config = GEOMETRIES[name].config()
    found: Adapter = registry("adapter").get(require_supported(config.model_type, name))()
    return shape_for(found.shape(config, bytes_per_element=2), options_of(name))


@pytest.fixture(scope="module", params=SMALL)
def subject(request: Any) -> BenchSubject:
    with torch.inference_mode():
        return BenchSubject.of(options_of(request.param))


@pytest.mark.parametrize("name", GEOMETRIES)
def test_every_geometry_is_in_the_documentation(name: str) -> None:
    page = (Path(__file__).parents[2] / "docs" / "cli.md").read_text(encoding="utf-8")
    (line,) = (line for line in page.splitlines() if line.startswith(f"| `{name}` |"))
    assert str(GEOMETRIES[name].n_visual) in line


def test_each_family_has_a_small_one() -> None:
    assert {type(GEOMETRIES[name]) for name in SMALL} == {type(one) for one in GEOMETRIES.values()}
    assert {counterpart(name) for name in GEOMETRIES} == set(SMALL)


@pytest.mark.parametrize("name", GEOMETRIES)
def test_a_geometry_counts_as_its_config_does(name: str) -> None:
    geometry, shape = GEOMETRIES[name], shape_of(name)
    vision, ids = shape.vision, geometry.image_ids()
    assert vision is not None
    assert geometry.n_visual == vision.n_visual
    assert int((ids == IMAGE).sum()) == vision.n_visual + vision.n_structure
    assert len(ids) == geometry.n_visual + geometry.n_marks
    assert bool(geometry.marks) == (geometry.n_marks > 0)
    assert (shape.n_layers, shape.hidden_size, shape.n_heads) == (
        geometry.n_layers, geometry.hidden_size, geometry.n_heads,
    )  # fmt: skip
    assert ids.max() < geometry.first_text < geometry.vocab_size


@pytest.mark.parametrize("name", FULL)
def test_full_sizes_are_those_of_a_published_model(name: str) -> None:
    shape = shape_of(name)
    presets = [shape_for(preset, options_of(name)) for preset in PRESETS.values()]
    assert replace(shape, name="") in [replace(preset, name="") for preset in presets]


def test_published_numbers_of_visual_tokens() -> None:
    counts = {name: (GEOMETRIES[name].n_visual, GEOMETRIES[name].n_marks) for name in FULL}
    assert counts == {
        "llava-1.5-7b": (576, 0), "llava-1.5-13b": (576, 0), "llava-next-7b": (2880, 48), "qwen2.5-vl-7b": (1296, 2),
    }  # fmt: skip


def test_the_engine_finds_the_visual_tokens_and_answers_have_their_length(subject: BenchSubject) -> None:
    options = subject.options
    with torch.inference_mode():
        inputs = subject.inputs(BATCH)
        assert inputs["input_ids"].shape == (BATCH, options.n_visual + options.n_text)
        with trim(subject.model, "none") as session:
            answer = generate(subject.model, inputs, 12)
    assert list(session.trace.n_visual) == [options.n_visual] * BATCH
    assert answer.shape[1] == inputs["input_ids"].shape[1] + 12
    for name, other in subject.inputs(BATCH).items():
        assert torch.equal(inputs[name], other)


def test_the_tower_sees_what_its_flops_are_counted_for(subject: BenchSubject) -> None:
    seen: list[int] = []
    block = subject.layout.vision_attentions[0]

    def note(module: Any, args: Any, kwargs: Any) -> None:
        hidden = kwargs["hidden_states"] if "hidden_states" in kwargs else args[0]
        seen.append(hidden.numel() // hidden.shape[-1])

    handle = block.register_forward_pre_hook(note, with_kwargs=True)
    with torch.inference_mode():
        generate(subject.model, subject.inputs(BATCH), 1)
    handle.remove()
    vision = subject.shape.vision
    assert vision is not None
    assert seen == [BATCH * IMAGES * vision.pieces * vision.n_tokens]


def test_the_floor_has_a_row_per_prompt_whatever_its_images(subject: BenchSubject) -> None:
    with torch.inference_mode():
        inputs = subject.inputs(BATCH)
        totals = [inputs["input_ids"].shape[1]] * subject.shape.n_layers
        assert KernelFloor(subject.model, subject.layout, inputs, totals).run().shape[:2] == (BATCH, 1)


@pytest.mark.parametrize("name", SMALL)
def test_a_bench_of_each_family(name: str) -> None:
    options = options_of(name, strategies=("fastervlm", "st3"), batch=2, new_tokens=2)
    result = run(options)
    none, *pruned = result.rows
    assert none.layer_mean_ratio == none.implied_speed_up == 1
    assert len(pruned) == 2
    for row in pruned:
        assert row.layer_mean_ratio == pytest.approx(0.25, abs=0.05)
        assert 0 < row.flops_ratio < 1 < row.implied_speed_up
        assert row.peak_bytes
        assert 0 < row.of_kernel_floor.median < float("inf")
    assert options.tokens() in " ".join(markdown(result).split())


def test_marks_of_images_are_text() -> None:
    assert options_of("tiny").tokens() == "32 visual and 6 text tokens"
    assert options_of("tiny-next").tokens() == "40 visual and 14 text tokens (8 of them line ends)"
    assert options_of("tiny-qwen").tokens() == "32 visual and 10 text tokens (4 of them marks around images)"


@pytest.mark.parametrize("measure", [run, lambda options: run_throughput(options, 2**30)])
def test_pruning_line_ends_is_refused_before_anything_runs(measure: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(BenchSubject, "of", lambda options: pytest.fail("a model was built"))
    spec = StrategySpec(strategy_from("random").strategy, structure="prune")
    with pytest.raises(ConfigError, match="structure must be keep here"):
        measure(options_of("tiny-next", strategies=(spec,)))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
@pytest.mark.parametrize("name", [name for name in SMALL if name != "tiny"])
def test_compiled_decoding_of_the_other_families(name: str, graphs_alone: None) -> None:
    found = run(options_of(name, compile=True, memory=False))
    assert found.rows[1].layer_mean_ratio == pytest.approx(0.25, abs=0.05)
