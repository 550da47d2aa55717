"""What pictures become, and what that costs, is learnt from a processor and a tower without weights."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import BatchFeature

from tests import models, qwen
from tokentrim.bench.families.of_model import of_model
from tokentrim.contracts.sites import Grid, Need
from tokentrim.contracts.token_places import Cells
from tokentrim.counting.costs import projector_flops, vision_flops
from tokentrim.counting.shape import ModelShape
from tokentrim.engine.session import Session
from tokentrim.errors import UnsupportedError
from tokentrim.loading import shape_of
from tokentrim.plugins.loader import registry
from tokentrim.selftest import learning
from tokentrim.selftest.weightless import counted, weightless

SIDE = 56


@pytest.fixture(autouse=True)
def fresh():
    """No test sees what another has learnt."""
    yield
    for known in (learning.reader, learning._tower, learning._cut, learning._counted, of_model):
        known.cache_clear()


def test_what_is_counted_is_what_the_formulas_of_a_plain_tower_say():
    model = models.tiny_llava(side=4)
    shape = registry("adapter").get("llava")().shape(model.config)
    bare = weightless(type(model), model.config)
    vision = model.config.vision_config
    pixels = torch.randn(1, 3, vision.image_size, vision.image_size)
    found = counted(bare.model.get_image_features, {"pixel_values": pixels})
    patches = 2 * 16 * vision.hidden_size * 3 * vision.patch_size**2  # which the formula leaves out
    assert found.lengths == (16,)
    assert found.flops == vision_flops(shape) + projector_flops(shape, 16) + patches


def test_a_tower_whose_way_depends_on_its_inputs_is_counted_too():
    family = qwen.Qwen2VL()
    model = family.model()
    inputs = family.prompt(model, [3, "image:64x96", 5])
    grid = inputs["image_grid_thw"]
    shape = registry("adapter").get("qwen-vl")().shape(model.config)
    shape = ModelShape(**{**vars(shape), "vision": shape.vision.for_image(64, 96)})
    bare = weightless(type(model), model.config)
    found = counted(bare.model.get_image_features, {"pixel_values": inputs["pixel_values"], "image_grid_thw": grid})
    n = shape.vision.n_visual
    patches = 2 * inputs["pixel_values"].numel() * model.config.vision_config.embed_dim
    assert found.lengths == (n,)
    assert found.flops == vision_flops(shape) + projector_flops(shape, n) + patches
    assert all(weight.is_meta for weight in bare.parameters())


class Sized:
    """A processor whose pictures become one token per 16 x 16 pixels, and the model's own id for them."""

    image_token = "#"
    chat_template = None
    tokenizer = SimpleNamespace(bos_token=None, padding_side="left", pad_token="p")

    def __init__(self, token: int) -> None:
        self.token = token

    def __call__(self, text: Any, images: Any, **asked: Any) -> BatchFeature:
        n = sum(image.width // 16 * (image.height // 16) for row in images for image in row)
        return BatchFeature({"input_ids": torch.tensor([[1, 2, *[self.token] * n]]), "pixel_values": torch.ones(1, 1)})


@pytest.fixture
def sized(monkeypatch):
    """The testbed as a model of whose pictures its adapter knows nothing."""
    shape = shape_of("testbed")
    token = 1000
    monkeypatch.setattr(learning, "load_processor", lambda folder: Sized(token))
    monkeypatch.setattr(learning, "placeholder", lambda config: token)
    return ModelShape(**{**vars(shape), "vision": None})


def test_counts_come_from_the_processor_for_every_size(sized: ModelShape):
    vision = learning.learnt("testbed", sized).vision
    assert vision is not None
    assert vision.varies
    assert vision.n_visual == 42 * 42
    assert vision.for_image(32, 64).n_visual == 2 * 4
    assert vision.for_image(32, 64, images=2).n_visual == 2 * 4


def test_a_shape_that_says_what_pictures_become_stays(sized: ModelShape):
    shape = shape_of("testbed")
    assert learning.learnt("testbed", shape) is shape


def test_a_tower_that_cannot_be_counted_is_said_to_be_so(sized: ModelShape):
    shape = learning.learnt("testbed", sized)  # its tower takes no such pixels
    assert vision_flops(shape) == projector_flops(shape, 8) == 0
    assert shape.uncounted
    assert ModelShape(**{**vars(shape), "vision": None}).uncounted == "nothing is known of it"
    assert not shape_of("testbed").uncounted


def test_plan_says_that_a_tower_is_not_counted(sized: ModelShape, monkeypatch, capsys):
    from typer.testing import CliRunner

    from tokentrim.cli import app

    monkeypatch.setattr("tokentrim.loading.shape_of", lambda model: sized)
    result = CliRunner().invoke(app, ["plan", "-s", "fastv", "--image-size", "32x64", "--json"])
    data = json.loads(result.stdout)
    assert data["n_visual"] == 8
    assert data["prefill_flops_whole"] is None
    assert any(note.startswith("the vision tower is not counted: ") for note in data["notes"])


def test_a_processor_that_writes_no_placeholder_is_refused(sized: ModelShape, monkeypatch):
    monkeypatch.setattr(learning, "placeholder", lambda config: 7)
    with pytest.raises(UnsupportedError, match="must write placeholders for a picture; got 0"):
        learning.learnt("testbed", sized)


def session(images: int, unserved: dict[Need, str] | None = None) -> Any:
    """One that has run a prompt of as many encoded pieces, each a row of two tokens."""
    zeros = torch.zeros(1, 2 * images, dtype=torch.long)
    image, col = torch.arange(images).repeat_interleave(2)[None], torch.arange(2).repeat(images)[None]
    grid = Grid(image=image, frame=zeros, plane=zeros, tile=zeros, row=zeros, col=col, rows=zeros + 1, cols=zeros + 2)
    return SimpleNamespace(layout=SimpleNamespace(unserved=unserved or {}), grid=grid)


def test_places_are_known_or_it_is_said_why_not():
    assert isinstance(Session.placed(session(2), 2), Cells)
    assert "2 pieces" in str(Session.placed(session(2), 1))
    assert Session.placed(session(1, {Need.GRID: "it lies elsewhere"}), 1) == "it lies elsewhere"


def test_tokens_in_their_order_fill_rows_of_a_square():
    cells = Cells.in_order(7)
    assert (cells.planes[0].rows, cells.planes[0].cols) == (3, 3)
    assert cells.inside(0, [0, 6]) == [0, 6]


def test_a_bench_of_a_model_has_its_sizes_and_its_own_words():
    geometry, shape = of_model("testbed"), shape_of("testbed")
    assert (geometry.n_layers, geometry.hidden_size) == (shape.n_layers, shape.hidden_size)
    assert geometry.n_visual == shape.vision.for_image(672, 672).n_visual
    assert geometry.picture.count(geometry.token) == geometry.n_visual
    assert geometry.token not in geometry.words
    assert type(geometry.config()).__name__ == "LlavaConfig"
