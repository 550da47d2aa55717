"""Smaller pictures at a budget's tokens: fewer tokens where a family has them, else the same with less in them."""

from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tokentrim.compare.config import load_compare
from tokentrim.compare.expand import expand
from tokentrim.contracts.tasks import Sample
from tokentrim.loading import load_model, shape_of
from tokentrim.runs.answer import run_cell
from tokentrim.runs.batches import make_batches
from tokentrim.runs.cells import locate
from tokentrim.runs.downscale import ratios, shrink, smaller
from tokentrim.runs.work import PromptCounts, work_of


def noise(height, width):
    return Image.fromarray(np.random.default_rng(0).integers(0, 255, (height, width, 3), dtype=np.uint8))


def detail(image):
    """Energy of the finest structure."""
    pixels = np.asarray(image, dtype=float)
    return float(np.abs(np.diff(pixels, axis=0)).mean())


@pytest.mark.parametrize("ratio", [0.5, 0.25, 0.1])
def test_a_tower_of_one_size_gets_as_many_pixels_as_the_tokens_are_worth(ratio):
    vision = shape_of("testbed").vision
    image = noise(80, 80)
    found = shrink(image, [image], vision, round(ratio * 100), 100)
    assert found.form == "same tokens"
    assert found.image.size == image.size
    assert ratio - 0.03 <= found.share <= ratio
    assert detail(found.image) < 0.7 * detail(image)


def test_a_photo_is_worth_what_the_tower_sees_of_it():
    vision = shape_of("llava-1.5-7b").vision
    photo = noise(1344, 1008)
    found = shrink(photo, [photo], vision, 144, 576)
    # 336 pixels on the shorter side are seen; a quarter of the tokens is half of that.
    assert found.share == pytest.approx(0.25, abs=0.005)
    assert found.image.size == photo.size
    little = noise(100, 100)
    assert shrink(little, [little], vision, 144, 576).image is little


def test_a_family_of_any_resolution_really_has_fewer_tokens():
    vision = shape_of("qwen2.5-vl-7b").vision
    image = noise(448, 336)
    full = vision.for_image(448, 336).n_visual
    found = shrink(image, [image], vision, full // 4, full)
    assert found.form == "fewer tokens"
    n = vision.for_image(found.image.height, found.image.width).n_visual
    assert 0.7 * full / 4 <= n <= full / 4
    assert abs(found.image.width / found.image.height - 0.75) < 0.02


@pytest.mark.parametrize("ratio", [0.5, 0.25, 0.1])
def test_a_processor_that_has_to_be_asked_is_asked_a_few_times_and_says_the_same(ratio):
    vision = shape_of("qwen2.5-vl-7b").vision
    asked: list[int] = []
    tiling: Any = type(vision.tiling)

    class Asked(tiling):
        asks = True

        def cut(self, height, width, images=1):
            asked.append(height)
            return super().cut(height, width, images)

    told = Asked(**{field.name: getattr(vision.tiling, field.name) for field in fields(vision.tiling)})
    image = noise(448, 336)
    full = vision.for_image(448, 336).n_visual
    whole, found = (
        shrink(image, [image], one, round(full * ratio), full) for one in (vision, replace(vision, tiling=told))
    )
    assert found.image.size == whole.image.size
    assert len(asked) < 15


def test_a_whole_budget_leaves_the_picture_alone():
    image = noise(80, 80)
    assert shrink(image, [image], shape_of("testbed").vision, 100, 100).image is image


def cell_of(model, **more):
    config = load_compare({"models": [model], "tasks": ["where"], "strategies": ["none"], "budgets": [0.25],
                           "samples": 3, "batch_size": 3, "text_only": False, "timing": False, **more})  # fmt: skip
    cells = expand(config, [locate(spec) for spec in config.models])
    return next(cell for cell in cells if cell.control == "downscale")


def test_costs_of_one_resolution_are_those_of_the_unpruned_run():
    cell = cell_of("testbed-plain")
    result = run_cell(cell, work_of(cell, load_model("testbed-plain")))
    assert not result.failures
    assert result.head["form"] == "same tokens"
    assert result.head["picture_ratio"] == pytest.approx(0.25)
    assert result.head["layer_mean_ratio"] == result.head["flops_ratio"] == result.head["kv_mean_ratio"] == 1.0
    assert result.head["strategy"] is None


@pytest.mark.slow
def test_costs_of_any_resolution_are_those_of_the_smaller_prompt():
    cell = cell_of("testbed-qwen2.5-vl")
    loaded = load_model("testbed-qwen2.5-vl")
    work = work_of(cell, loaded)
    full = {batch.n_visual for batch in work.batches}
    shown = smaller(cell, work)
    assert shown.forms == ("fewer tokens",)
    assert all(batch.n_visual <= 0.25 * max(full) for batch in shown.work.batches)
    assert make_batches(loaded, shown.work.samples, 3)[0].n_visual == shown.work.batches[0].n_visual
    result = run_cell(cell, work)
    assert not result.failures
    assert 0.1 < result.head["layer_mean_ratio"] <= 0.25
    assert result.head["kv_mean_ratio"] == pytest.approx(result.head["layer_mean_ratio"])
    assert result.head["flops_ratio"] < 0.5


def test_shares_are_against_the_full_pictures():
    shape = shape_of("testbed")
    image = noise(80, 80)
    loaded = load_model("testbed-plain")
    batch = make_batches(loaded, [Sample("a", (image,), "color of 3 ?", "red")], 1)[0]
    found = ratios(shape, PromptCounts(200, batch.n_text[0]), batch, 0, new_tokens=3)
    assert found["layer_mean_ratio"] == found["kv_mean_ratio"] == 0.5
    assert 0.4 < found["flops_ratio"] < 0.5  # attention costs more than its share
    assert 0.5 < found["kv_total_mean_ratio"] < 0.6
