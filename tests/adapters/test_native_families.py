"""Mistral3 and GLM-4.1V: the oracles on images of any size, GLM's also on videos and under M-RoPE."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers.models.glm4v.modeling_glm4v import apply_rotary_pos_emb_vision

from tests.engine.cases import ATTENDING, FIRST, SPECS, dealt, deviation, generate
from tests.engine.probes import Probe
from tests.families import Layout
from tests.masked import masked_logits
from tests.native import MERGE, Glm4v, Mistral3
from tests.oracle import TOLERANCE, check, check_beams
from tokentrim.contracts.adapter import Encoding
from tokentrim.errors import AdapterError, UnsupportedError
from tokentrim.session import adapter_of, trim

FAMILIES = {family.name: family for family in (Mistral3(), Glm4v())}
NAMES = tuple(FAMILIES)
VIDEOS: tuple[Layout, ...] = ((3, "video:3:16x24", 5), (9,), (2, "video:2:24x16", 4, "video:1:16x16", 6))


@pytest.mark.parametrize(("strategy", "name"), dealt(FIRST, NAMES))
def test_dropping_in_a_ragged_batch_is_masking_each_row(name: str, strategy: str) -> None:
    check(FAMILIES[name], FAMILIES[name].model(), SPECS[strategy])


@pytest.mark.parametrize(("strategy", "name"), dealt(ATTENDING, NAMES[::-1]))
def test_dropping_is_masking_with_eager_attention(name: str, strategy: str) -> None:
    check(FAMILIES[name], FAMILIES[name].model(attention="eager"), SPECS[strategy])


@pytest.mark.parametrize("strategy", ["random", "st3", "fastervlm"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_dropping_of_videos_is_masking(attention: str, strategy: str) -> None:
    class Filmed(Glm4v):
        ragged = VIDEOS

    family = Filmed()
    spec = next(SPECS[name] for name in FIRST if name.startswith(strategy))
    check(family, family.build(attention=attention), spec)


@pytest.mark.parametrize("name", NAMES)
def test_renumbered_positions(name: str) -> None:
    family = FAMILIES[name]
    model = family.model()
    for layout in (family.row, VIDEOS[0]) if name == "glm4v" else (family.row,):
        inputs = family.prompt(model, layout)
        with trim(model, {"name": "random", "keep_count": 3, "boundary": 1, "positions": "renumber"}) as session:
            ids, logits = generate(model, inputs, 5)
            trace = session.trace
        visual = family.visual(model, inputs)[0]
        expected = masked_logits(model, inputs, ids[0, :-1], trace, visual=visual, renumber=True)
        assert deviation(logits[0], expected[len(visual) - 1 :]) < TOLERANCE


@pytest.mark.parametrize("name", NAMES)
def test_keeping_everything_changes_no_bit(name: str) -> None:
    family = FAMILIES[name]
    model = family.model()
    for layouts, counts in ((family.ragged, (12, 0, 14)), (VIDEOS, (18, 0, 16)))[: 1 + (name == "glm4v")]:
        inputs = family.prompt(model, *layouts)
        ids, logits = generate(model, inputs, 4)
        for spec in ("none", {"name": "random", "keep_ratio": 1.0}, {"name": "fastv", "keep_ratio": 1.0}):
            with trim(model, spec) as session:
                found_ids, found = generate(model, inputs, 4)
                assert session.trace.n_visual == counts
            assert torch.equal(found_ids, ids)
            assert torch.equal(found, logits)


@pytest.mark.parametrize("spec", ["none", {"name": "random", "keep_ratio": 0.4, "boundary": 0}, SPECS["st3"]])
@pytest.mark.parametrize("name", NAMES)
def test_beams_of_a_batch_are_the_beams_of_each_row(name: str, spec: Any) -> None:
    check_beams(FAMILIES[name], spec, FAMILIES[name].ragged)


@pytest.mark.parametrize("name", NAMES)
def test_the_grid_names_picture_row_and_column(name: str) -> None:
    family = FAMILIES[name]
    model = family.model()
    expected = [
        [(0, 0, y, x, 3, 4) for y in range(3) for x in range(4)],
        [],
        [(0, 0, y, x, 2, 3) for y in range(2) for x in range(3)]
        + [(1, 0, y, x, 4, 2) for y in range(4) for x in range(2)],
    ]
    assert _grid(family, model, family.ragged) == expected


def test_a_video_has_one_plane_per_frame() -> None:
    family = FAMILIES["glm4v"]
    expected = [
        [(0, t, y, x, 2, 3) for t in range(3) for y in range(2) for x in range(3)],
        [],
        [(0, t, y, x, 3, 2) for t in range(2) for y in range(3) for x in range(2)]
        + [(1, 0, y, x, 2, 2) for y in range(2) for x in range(2)],
    ]
    assert _grid(family, family.model(), VIDEOS) == expected


def _grid(family: Any, model: Any, layouts: tuple[Layout, ...]) -> list[list[tuple[int, ...]]]:
    """(image, frame, row, col, rows, cols) of every visual token of each row."""
    with trim(model, "none") as session, torch.no_grad():
        model(**family.prompt(model, *layouts))
        grid = session.grid
    names = ("image", "frame", "row", "col", "rows", "cols")
    every = torch.stack([getattr(grid, name) for name in names], dim=-1).tolist()
    return [[tuple(token) for token in row if token[2] >= 0] for row in every]


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", NAMES)
def test_a_site_shows_the_towers_attention_where_the_features_are(name: str, attention: str) -> None:
    """Full maps of the tower, one image at a time."""
    family = FAMILIES[name]
    model = family.model(attention=attention)
    inputs = family.prompt(model, *family.ragged)
    probe = Probe(at=(0,), blocks=(-1, 0))
    with trim(model, probe), torch.no_grad():
        model(**inputs)
    for row in (0, 2):
        single = family.alone(model, family.ragged, row)
        for index, block in enumerate((-1, 0)):
            slow = _slow_mistral3 if name == "mistral3" else _slow_glm4v
            expected = torch.cat(slow(family.model(attention="eager").model, single, block), dim=1)
            found = probe._seen[0]["vision_rows"][row, index, :, : expected.shape[1]]
            torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-4)


def _slow_mistral3(model: Any, inputs: dict[str, Any], block: int) -> list[Tensor]:
    """[H, tokens] of each image."""
    found: list[Tensor] = []
    for pixels, (height, width) in zip(inputs["pixel_values"], inputs["image_sizes"].tolist(), strict=True):
        with torch.no_grad():
            maps = model.vision_tower(pixels[None, :, :height, :width], output_attentions=True).attentions[block]
        square = maps[0].mean(1).unflatten(-1, (height // 4, width // 4))
        found.append(torch.nn.functional.avg_pool2d(square, MERGE).flatten(1))
    return found


def _slow_glm4v(model: Any, inputs: dict[str, Any], block: int) -> list[Tensor]:
    """The same; its patches come in the order of the tokens that they become."""
    found: list[Tensor] = []
    grids = inputs["image_grid_thw"]
    for pixels, grid in zip(inputs["pixel_values"].split(grids.prod(-1).tolist()), grids, strict=True):
        maps: list[Tensor] = []
        looked = functools.partial(_look, maps)
        handle = model.visual.blocks[block].attn.register_forward_pre_hook(looked, with_kwargs=True)
        with torch.no_grad():
            model.visual(pixels, grid_thw=grid[None])
        handle.remove()
        found.append(maps[0].mean(1).unflatten(-1, (-1, MERGE**2)).mean(-1))
    return found


def _look(maps: list[Tensor], module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Add [H, T, T]: a block's attention to one picture, from its own projections."""
    states: Tensor = args[0] if args else kwargs["hidden_states"]
    query, key, _ = module.qkv(states).reshape(len(states), 3, module.num_heads, -1).unbind(1)
    query, key = apply_rotary_pos_emb_vision(query, key, *kwargs["position_embeddings"])
    maps.append(torch.softmax(query.transpose(0, 1) @ key.permute(1, 2, 0) * module.scaling, dim=-1))


@pytest.mark.parametrize("name", NAMES)
def test_pixels_are_the_pictures_own(name: str) -> None:
    """Noise is the same in a batch, where images are padded, as alone."""
    family = FAMILIES[name]
    model = family.model()
    spec = {"name": "random", "keep_ratio": 0.5, "boundary": 0}
    with trim(model, spec) as session, torch.no_grad():
        model(**family.prompt(model, *family.ragged))
        together = session.trace
    for row in (0, 2):
        with trim(model, spec) as session, torch.no_grad():
            model(**family.alone(model, family.ragged, row))
            assert torch.equal(session.trace.kept(0), together.kept(0, row))


def test_what_has_drifted_or_is_not_known_is_an_error() -> None:
    for name, arguments in (
        ("mistral3", {"image_sizes": torch.tensor([[16, 16]])}),
        ("glm4v", {"image_grid_thw": torch.tensor([[1, 4, 4]])}),
    ):
        adapter = adapter_of(FAMILIES[name].model())
        layout = adapter.locate(FAMILIES[name].model())
        assert len(adapter.places(layout, Encoding("image", arguments, (4,)), 0).row) == 4
        with pytest.raises(AdapterError, match="has drifted"):
            adapter.places(layout, Encoding("image", arguments, (7,)), 0)
        with pytest.raises(UnsupportedError, match="inside the context"):
            adapter.places(layout, Encoding("image", {}, (4,)), 0)
