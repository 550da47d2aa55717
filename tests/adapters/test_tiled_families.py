"""SmolVLM, Idefics3 and InternVL: the oracles on images of one piece and of many, and where each piece lies."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import Tensor
from transformers import Idefics3Processor

from tests import models
from tests.engine.cases import ATTENDING, FIRST, SPECS, dealt, deviation, generate
from tests.engine.probes import Probe
from tests.families import Picture, noise
from tests.oracle import check, check_beams
from tests.tiled import EACH, MERGE, PIXELS, SIDE, Idefics3, InternVL, SmolVLM, tiles_of
from tokentrim.contracts.adapter import Encoding
from tokentrim.contracts.sites import Need
from tokentrim.errors import UnsupportedError
from tokentrim.session import adapter_of, trim

FAMILIES = {family.name: family for family in (SmolVLM(), Idefics3(), InternVL())}
NAMES = tuple(FAMILIES)


@pytest.mark.parametrize(("strategy", "name"), dealt(FIRST, NAMES))
def test_dropping_in_a_ragged_batch_is_masking_each_row(name: str, strategy: str) -> None:
    check(FAMILIES[name], FAMILIES[name].model(), SPECS[strategy])


@pytest.mark.parametrize(("strategy", "name"), dealt(ATTENDING, (*NAMES[1:], NAMES[0])))
def test_dropping_is_masking_with_eager_attention(name: str, strategy: str) -> None:
    check(FAMILIES[name], FAMILIES[name].model(attention="eager"), SPECS[strategy])


@pytest.mark.parametrize("backbone", ["llama", "qwen3"])
def test_dropping_is_masking_on_other_backbones(backbone: str) -> None:
    check(FAMILIES["internvl"], FAMILIES["internvl"].model(backbone=backbone), SPECS["st3"])


@pytest.mark.parametrize("name", NAMES)
def test_keeping_everything_changes_no_bit(name: str) -> None:
    family = FAMILIES[name]
    model = family.model()
    inputs = family.prompt(model, *family.ragged)
    ids, logits = generate(model, inputs, 4)
    for spec in ("none", {"name": "random", "keep_ratio": 1.0, "boundary": 0}, {"name": "fastv", "keep_ratio": 1.0}):
        with trim(model, spec) as session:
            found_ids, found = generate(model, inputs, 4)
            assert session.trace.n_visual == (7 * EACH, 0, (3 + 1 + 4) * EACH)
        assert torch.equal(found_ids, ids)
        assert torch.equal(found, logits)


@pytest.mark.parametrize("spec", ["none", {"name": "random", "keep_ratio": 0.4, "boundary": 0}, SPECS["st3"]])
@pytest.mark.parametrize("name", NAMES)
def test_beams_of_a_batch_are_the_beams_of_each_row(name: str, spec: Any) -> None:
    check_beams(FAMILIES[name], spec, FAMILIES[name].ragged)


# ---------------------------------------------------------------------- where things are


def _expected(layout: Any) -> list[tuple[int, ...]]:
    """(image, plane, tile, row, col, rows, cols) of every visual token of a row, written down tile by tile."""
    found: list[tuple[int, ...]] = []
    pictures = [Picture.parse(part) for part in layout if isinstance(part, str)]
    for image, picture in enumerate(pictures):
        rows, cols = tiles_of(picture)
        for r in range(rows):
            for c in range(cols):
                for y in range(SIDE):
                    for x in range(SIDE):
                        place = (r * SIDE + y, c * SIDE + x, rows * SIDE, cols * SIDE)
                        found.append((image, 1, 1 + r * cols + c, *place))
        found += [(image, 0, 0, y, x, SIDE, SIDE) for y in range(SIDE) for x in range(SIDE)]
    return found


@pytest.mark.parametrize("name", NAMES)
def test_the_grid_names_image_tile_row_and_column(name: str) -> None:
    family = FAMILIES[name]
    model = family.model()
    layouts = (*family.ragged, ("image:2x2", "image:4x1", 1), (1, "image", "image", "image:3x3", 2))
    inputs = family.prompt(model, *layouts)
    names = ("image", "plane", "tile", "row", "col", "rows", "cols")
    for run in (lambda: model(**inputs), lambda: model.generate(**inputs, max_new_tokens=1, num_beams=2)):
        with trim(model, "none") as session, torch.no_grad():
            run()
            grid = session.grid
        repeats = grid.row.shape[0] // len(layouts)
        for row, layout in enumerate(layouts):
            expected = _expected(layout)
            columns = [getattr(grid, name)[row * repeats, : len(expected)].tolist() for name in names]
            assert list(zip(*columns, strict=True)) == expected
            assert bool((grid.row[row * repeats, len(expected) :] == -1).all())


@pytest.mark.parametrize("name", NAMES)
def test_a_site_shows_the_towers_attention_where_the_features_are(name: str) -> None:
    """Full maps of the tower, through the model's own merging of patches."""
    family = FAMILIES[name]
    model = family.model()
    inputs = family.prompt(model, *family.ragged)
    probe = Probe(at=(0,), blocks=(-1, 0))
    with trim(model, probe), torch.no_grad():
        model(**inputs)
    eager = family.model(attention="eager").model
    for row in (0, 2):
        pixels = family.alone(model, family.ragged, row)["pixel_values"].flatten(0, -4)
        for index, block in enumerate((-1, 0)):
            expected = _slow_rows(name, eager, pixels, block)
            found = probe._seen[0]["vision_rows"][row, index, :, : len(expected)]
            torch.testing.assert_close(found.T, expected, atol=1e-6, rtol=1e-4)


def _slow_rows(name: str, model: Any, pixels: Tensor, block: int) -> Tensor:
    """[visual tokens, H]."""
    tower = model.vision_tower if name == "internvl" else model.vision_model
    with torch.no_grad():
        maps = tower(pixels, output_attentions=True).attentions[block]
    rows = (maps[:, :, 0, 1:] if name == "internvl" else maps.mean(2)).transpose(1, 2)  # [pieces, patches, H]
    if name == "internvl":
        side = SIDE * MERGE
        merged = model.pixel_shuffle(rows.unflatten(1, (side, side)).contiguous(), 1 / MERGE).flatten(1, 2)
    else:
        merged = model.connector.pixel_shuffle(rows.contiguous(), MERGE)
    return merged.unflatten(-1, (MERGE**2, -1)).mean(-2).flatten(0, 1)


@pytest.mark.parametrize("name", NAMES)
def test_a_change_in_a_tile_shows_in_its_tokens(name: str) -> None:
    """Pixels of one visual token are changed: the feature that changes most is the one placed there."""
    family = FAMILIES[name]
    model = family.model()
    inputs = family.prompt(model, (2, "image:1x2", 3))
    features = model.model.get_image_features
    with torch.no_grad():
        plain = _flat(features(inputs["pixel_values"]))
    piece, y, x = 1, 1, 0  # the second tile's lower left token
    changed = inputs["pixel_values"].clone()
    unit = PIXELS // SIDE
    changed.flatten(0, -4)[piece, :, y * unit : (y + 1) * unit, x * unit : (x + 1) * unit] += 5.0
    with torch.no_grad():
        token = int((_flat(features(changed)) - plain).norm(dim=-1).argmax())
    with trim(model, "none") as session, torch.no_grad():
        model(**inputs)
        grid = session.grid
    place = [int(getattr(grid, name)[0, token]) for name in ("plane", "tile", "row", "col")]
    assert place == [1, 2, 1, SIDE]


def _flat(output: Any) -> Tensor:
    return torch.cat([item.flatten(0, -2) for item in output.pooler_output])


@pytest.mark.parametrize("name", NAMES)
def test_what_was_encoded_elsewhere_needs_no_place(name: str) -> None:
    family = FAMILIES[name]
    model = family.model()
    inputs = family.prompt(model, *family.ragged)
    with torch.no_grad():
        output = model.model.get_image_features(inputs.pop("pixel_values"))
    with trim(model, "{name: fastv, keep_ratio: 0.5}") as session, torch.no_grad():
        model(**inputs, mm_encoder_outputs={"image": output})
        assert session.trace.n_visual == (7 * EACH, 0, 8 * EACH)
        if name == "internvl":
            with pytest.raises(UnsupportedError, match="arrangement"):
                _ = session.grid
        else:
            assert int(session.grid.rows.max()) == 3 * SIDE


# ---------------------------------------------------------------------- the text of SmolVLM and Idefics3

_CUTS = st.sampled_from([(0, 0), (1, 2), (2, 1), (2, 3), (4, 4), (1, 5)])


@given(cuts=st.lists(_CUTS, min_size=1, max_size=4), between=st.lists(st.integers(0, 3), min_size=5, max_size=5))
@settings(deadline=None, max_examples=60)
def test_the_text_of_the_processor_tells_how_images_were_cut(cuts: list[tuple[int, int]], between: list[int]) -> None:
    processor: Any = object.__new__(Idefics3Processor)
    processor.fake_image_token, processor.global_image_tag, processor.image_token = "<e>", "<global-img>", "<image>"
    processor.image_seq_len = EACH
    made = {"rows": [[rows for rows, _ in cuts]], "cols": [[cols for _, cols in cuts]]}
    text = "".join(
        "w " * words + processor.replace_image_token(made, index)
        for index, words in enumerate(between[: len(cuts)])
    ) + "w " * between[4]  # fmt: skip
    known = {"<image>": models.IMAGE}
    words = re.findall(r"<[^>]*>|\n+|w ", text)
    prompt = torch.tensor([known.setdefault(word, 200 + len(known)) for word in words])
    adapter, layout = _located("smolvlm")
    encoding = Encoding("image", {}, (int((prompt == models.IMAGE).sum()),))
    found = adapter.pictures(layout, encoding, [prompt])
    assert [_cut_of(places) for places in found] == cuts


def _located(name: str) -> tuple[Any, Any]:
    model = FAMILIES[name].model()
    adapter = adapter_of(model)
    return adapter, adapter.locate(model)


def _cut_of(places: Any) -> tuple[int, int]:
    tiled = places.plane == 1
    return (int(places.rows[0]) // SIDE, int(places.cols[0]) // SIDE) if bool(tiled.any()) else (0, 0)


def test_pieces_without_tags_are_images_of_their_own() -> None:
    adapter, layout = _located("smolvlm")
    piece = [models.IMAGE] * EACH
    for prompt in ([5, 6, *piece, 7, 8, *piece, 9], [*piece, *piece, 3], [5, *piece, 6, 7, *piece]):
        found = adapter.pictures(layout, Encoding("image", {}, (2 * EACH,)), [torch.tensor(prompt)])
        assert [_cut_of(places) for places in found] == [(0, 0), (0, 0)]


@pytest.mark.parametrize("name", ["smolvlm", "idefics3"])
def test_a_row_without_images_may_bring_black_pieces(name: str) -> None:
    """As processors pad a batch; noise follows the row's own pieces."""
    family = FAMILIES[name]
    model = family.model()
    inputs = family.prompt(model, *family.ragged)
    first, last = inputs["pixel_values"]
    inputs["pixel_values"] = torch.stack([first, torch.zeros_like(first), last])
    with trim(model, {"name": "random", "keep_ratio": 0.5, "boundary": 0}) as session, torch.no_grad():
        model(**inputs)
        together = session.trace
    for row in (0, 2):
        with trim(model, {"name": "random", "keep_ratio": 0.5, "boundary": 0}) as session, torch.no_grad():
            model(**family.alone(model, family.ragged, row))
            assert torch.equal(session.trace.kept(0), together.kept(0, row))


def test_towers_whose_tokens_merge_otherwise_are_not_served() -> None:
    for name in NAMES:
        assert Need.TOWER_GROUPS in _located(name)[1].unserved


def test_another_number_of_patches_is_an_error() -> None:
    for name in NAMES:
        adapter, layout = _located(name)
        with pytest.raises(Exception, match="patches in the vision tower"):
            adapter.arrange(layout, Encoding("image", {}, (EACH,)), [noise(1, 1, 2, 7)])


def test_rounding_of_logits_is_small_enough_to_see_a_difference() -> None:
    """The oracles above compare like with unlike: another keep makes another answer."""
    family = FAMILIES["internvl"]
    model = family.model()
    inputs = family.prompt(model, family.row)
    logits: list[Tensor] = []
    for count in (2, 20):
        with trim(model, {"name": "uniform", "keep_count": count, "boundary": 0}):
            logits.append(generate(model, inputs, 1)[1])
    assert deviation(*logits) > 1e-2
