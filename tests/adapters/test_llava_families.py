"""LLaVA-NeXT, LLaVA-NeXT-Video and LLaVA-OneVision: the oracles on images of many sizes, several images and videos."""

from __future__ import annotations

from dataclasses import replace
from itertools import cycle
from types import MappingProxyType
from typing import Any

import pytest
import torch
import transformers
from hypothesis import given, settings, strategies as st
from torch import Tensor

from tests.engine.cases import ATTENDING, FIRST, SPECS, dealt, deviation, generate
from tests.engine.probes import Probe
from tests.families import FAMILIES, Family, Layout, noise
from tests.masked import masked_logits
from tests.oracle import TOLERANCE, check, check_beams, trimmed
from tokentrim.config.specs import strategy_from
from tokentrim.contracts.adapter import Encoding, Layout as Located
from tokentrim.counting.forecast import plan
from tokentrim.errors import AdapterError, ConfigError, UnsupportedError
from tokentrim.session import adapter_of, trim

NAMES = ("llava-next", "llava-next-video", "llava-onevision")


@pytest.mark.parametrize(("strategy", "name"), dealt(FIRST, (*NAMES[1:], NAMES[0])))
def test_dropping_in_a_ragged_batch_is_masking_each_row(strategy: str, name: str) -> None:
    family = FAMILIES[name]
    check(family, family.model(), SPECS[strategy])


@pytest.mark.parametrize(("strategy", "name"), dealt(ATTENDING, NAMES))
def test_dropping_is_masking_with_eager_attention(strategy: str, name: str) -> None:
    family = FAMILIES[name]
    check(family, family.model(attention="eager"), SPECS[strategy])


@pytest.mark.parametrize(("backbone", "tower"), [("mistral", "clip"), ("qwen2", "siglip")])
def test_dropping_is_masking_on_other_backbones(backbone: str, tower: str) -> None:
    family = FAMILIES["llava-next"]
    check(family, family.model(backbone=backbone, tower=tower), SPECS["st3"])


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", NAMES)
def test_keeping_everything_changes_no_bit(name: str, attention: str) -> None:
    family = FAMILIES[name]
    model = family.model(attention=attention)
    inputs = family.prompt(model, *family.ragged)
    ids, logits = generate(model, inputs, 4)
    with torch.no_grad():
        direct = model(**inputs).logits
    structures = cycle(("keep", "prune") if attention == "sdpa" else ("prune", "keep"))
    everything = (
        "none",
        {"name": "random", "keep_ratio": 1.0, "boundary": 0},
        {"name": "fastv", "keep_ratio": 1.0, "k": 2, "query": "all"},
        {"name": "vta", "floor": 1.0},
    )
    for spec, structure in zip(everything, structures, strict=False):
        with trimmed(family, model, spec, inputs, structure=structure), torch.no_grad():
            found_ids, found = generate(model, inputs, 4)
            assert torch.equal(model(**inputs).logits, direct)
        assert torch.equal(found_ids, ids)
        assert torch.equal(found, logits)


@pytest.mark.parametrize("spec", ["none", {"name": "random", "keep_ratio": 0.4, "boundary": 0}, SPECS["st3"]])
@pytest.mark.parametrize("name", NAMES)
def test_beams_of_a_batch_are_the_beams_of_each_row(name: str, spec: Any) -> None:
    """Pictures of different sizes, several in a row, videos, each for two beams; noise follows the content."""
    layouts = [layout for layout in FAMILIES[name].ragged if _EXPANDS_ALL or _is_simple(layout)]
    check_beams(FAMILIES[name], spec, layouts)


_EXPANDS_ALL = tuple(int(part) for part in transformers.__version__.split(".")[:2]) >= (5, 23)
"""Older releases repeat several images of a row in the wrong order for beams, and fail on videos, pruned or not."""


def _is_simple(layout: Layout) -> bool:
    pictures = [part for part in layout if not isinstance(part, int)]
    return len(pictures) <= 1 and all(part.startswith("image") for part in pictures)


# ---------------------------------------------------------------------- geometry

_sizes = st.integers(1, 90)
_quick = settings(deadline=None, max_examples=60)


def _packed(family: Family, model: Any, features: list[Tensor], sizes: list[tuple[int, int]]) -> list[Tensor]:
    """What the model itself makes of per-piece features [pieces, S * S, C]; line ends become -1."""
    ends = torch.full((features[0].shape[-1],), -1.0)
    given = torch.tensor(sizes)
    if family.name == "llava-onevision":
        aspect = model.config.vision_aspect_ratio
        return model.model.pack_image_features(features, given, image_newline=ends, vision_aspect_ratio=aspect)[0]
    return model.model.pack_image_features(features, given, "default", image_newline=ends)[0]


def _pieces(layout: Located, size: tuple[int, int]) -> int:
    tiling: Any = layout.shape.vision and layout.shape.vision.tiling
    return tiling.pieces(*size)


@pytest.mark.parametrize("name", NAMES)
@given(height=_sizes, width=_sizes)
@_quick
def test_places_are_where_the_model_puts_features(name: str, height: int, width: int) -> None:
    """Coordinates handed through the model's own packing come out where the adapter says."""
    family = FAMILIES[name]
    model = family.model()
    adapter = adapter_of(model)
    layout = adapter.locate(model)
    config = model.config.vision_config
    side = config.image_size // config.patch_size
    n = _pieces(layout, (height, width))
    y, x = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    own = torch.stack([y.flatten(), x.flatten()], dim=-1).float()
    tile = torch.arange(n).view(-1, 1, 1).expand(n, side * side, 1).float()
    packed = _packed(family, model, [torch.cat([tile, own.expand(n, -1, -1)], dim=-1)], [(height, width)])[0]
    encoding = Encoding("image", {"image_sizes": torch.tensor([[height, width]])}, (len(packed),))
    places = adapter.places(layout, encoding, 0)
    ends = (packed == -1).all(-1)
    assert torch.equal(places.structure, ends)
    assert bool((places.row[ends] == -1).all())
    base, plane = places.plane == 0, places.plane == 1
    assert int(base.sum()) == side * side
    assert torch.equal(places.row[base] * side + places.col[base], torch.arange(side * side))
    shown = layout.shape.vision.for_image(height, width)
    assert (int((~ends).sum()), int(ends.sum())) == (shown.n_visual, shown.n_structure)
    if not bool(plane.any()):
        return
    rows, cols = int(places.rows[plane][0]), int(places.cols[plane][0])
    assert torch.equal(places.row[plane] * cols + places.col[plane], torch.arange(rows * cols))
    number, row, col = packed[plane].unbind(-1)
    tiling: Any = layout.shape.vision.tiling
    whole = tiling.assembled(height, width)
    if (whole.rows, whole.cols) != (whole.height, whole.width):
        assert bool((places.tile[plane].diff().abs() < n).all())  # interpolated: no feature is of one tile alone
        assert int(places.tile[plane].min()) >= 1
        assert int(places.tile[plane].max()) <= whole.tiles
        return
    assert torch.equal(places.tile[plane], number.long())
    top = (number.long() - 1) // whole.tile_cols * side + row.long()
    left = (number.long() - 1) % whole.tile_cols * side + col.long()
    assert torch.equal(places.row[plane], top - top[0])
    assert torch.equal(places.col[plane], left - left[0])


@pytest.mark.parametrize("boundary", [0, 2])
@pytest.mark.parametrize("name", NAMES)
def test_a_site_shows_the_towers_attention_packed_like_the_features(name: str, boundary: int) -> None:
    family = FAMILIES[name]
    model = family.model()
    inputs = family.prompt(model, *family.ragged)
    probe = Probe(at=(boundary,), blocks=(-2, 0))
    with trim(model, probe), torch.no_grad():
        model.generate(**inputs, max_new_tokens=2, do_sample=False)
    tower = FAMILIES[name].model(attention="eager").model.vision_tower
    for row in range(len(family.ragged)):
        single = family.alone(model, family.ragged, row)
        visual = family.visual(model, single)[0]
        for index, block in enumerate((-2, 0)):
            expected = torch.zeros(len(visual), 2)
            for modality, token in (("image", family.image_id), ("video", family.video_id)):
                here = single["input_ids"][0] == (-1 if token is None else token)
                if bool(here.any()):
                    expected[here] = _slow_rows(family, model, tower, single, modality, block)
            found = probe._seen[boundary]["vision_rows"][row, index, :, : int(visual.sum())]
            torch.testing.assert_close(found.T, expected[visual], atol=1e-6, rtol=1e-4)


def _slow_rows(family: Family, model: Any, tower: Any, inputs: dict[str, Any], modality: str, block: int) -> Tensor:
    """[placeholders, H]: full maps of the tower, picture by picture, through the model's own packing or pooling."""
    side = model.config.vision_config.image_size // model.config.vision_config.patch_size

    def received(pixels: Tensor) -> Tensor:
        with torch.no_grad():
            maps = tower(pixels, output_attentions=True).attentions[block]
        n = side * side
        row = maps[:, :, 0, 1:] if maps.shape[-1] > n else maps.mean(dim=2)
        return row.transpose(1, 2)  # [pieces, S * S, H]

    if modality == "image":
        layout = adapter_of(model).locate(model)
        found: list[Tensor] = []
        several = family.name == "llava-onevision" and len(inputs["pixel_values"]) > 1
        for pixels, size in zip(inputs["pixel_values"], inputs["image_sizes"].tolist(), strict=True):
            pieces = received(pixels[: 1 if several else _pieces(layout, tuple(size))])
            found += _packed(family, model, [pieces], [tuple(size)])
        return torch.cat(found)
    videos: list[Tensor] = []
    for frames in inputs["pixel_values_videos"]:
        maps = received(frames).transpose(1, 2).unflatten(-1, (side, side))
        if family.name == "llava-onevision":
            small = torch.nn.functional.interpolate(maps, size=[-(-side // 2)] * 2, mode="bilinear")
            videos.append(small.flatten(2).transpose(1, 2).flatten(0, 1))
            videos.append(torch.zeros(1, maps.shape[1]))
        else:
            small = torch.nn.functional.avg_pool2d(maps, 2)
            videos.append(small.flatten(2).transpose(1, 2).flatten(0, 1))
    return torch.cat(videos)


@pytest.mark.parametrize("name", NAMES[1:])
def test_videos_have_one_plane_per_frame(name: str) -> None:
    family = FAMILIES[name]
    model = family.model()
    inputs = family.prompt(model, [2, "video:3", 2, "image", 1])
    with trim(model, "none") as session, torch.no_grad():
        model(**inputs)
        grid = session.grid
    side = 2  # 4 patches pooled by 2, 3 patches halved and rounded up
    n = 3 * side * side
    # Images are numbered before videos, wherever they stand.
    assert grid.image[0].tolist() == [1] * n + [0] * (grid.image.shape[1] - n)
    assert grid.frame[0, :n].tolist() == [frame for frame in range(3) for _ in range(side * side)]
    assert grid.row[0, :n].tolist() == [0, 0, 1, 1] * 3
    assert grid.col[0, :n].tolist() == [0, 1, 0, 1] * 3
    assert set(grid.rows[0, :n].tolist()) == set(grid.cols[0, :n].tolist()) == {side}
    assert set(grid.plane[0, :n].tolist()) == set(grid.tile[0, :n].tolist()) == {0}


@pytest.mark.parametrize("pool", ["average", "max", "conv"])
def test_frames_may_be_pooled_in_any_way(pool: str) -> None:
    family = FAMILIES["llava-next-video"]
    model = family.model(pool=pool)
    inputs = family.prompt(model, [2, "video:2", 2])
    probe = Probe(at=(0,), blocks=(-2,))
    with trim(model, probe), torch.no_grad():
        model(**inputs)
    tower = family.model(pool=pool, attention="eager").model.vision_tower
    with torch.no_grad():
        maps = tower(inputs["pixel_values_videos"][0], output_attentions=True).attentions[-2][:, :, 0, 1:]
    reduce = torch.nn.functional.max_pool2d if pool == "max" else torch.nn.functional.avg_pool2d
    expected = reduce(maps.unflatten(-1, (4, 4)), 2).permute(1, 0, 2, 3).flatten(1)
    torch.testing.assert_close(probe._seen[0]["vision_rows"][0, 0], expected, atol=1e-6, rtol=1e-4)


# ---------------------------------------------------------------------- line ends


@pytest.mark.parametrize("name", NAMES)
def test_line_ends_stay_unless_they_are_to_be_pruned(name: str) -> None:
    family = FAMILIES[name]
    model = family.model()
    inputs = family.prompt(model, family.row)
    structure, placeholders = family.structure(model, inputs)[0], family.placeholders(inputs)[0]
    spec = {"name": "random", "keep_count": 0, "boundary": 1}
    for choice, gone in (("keep", placeholders & ~structure), ("prune", placeholders)):
        with trim(model, spec, structure=choice) as session:
            ids, logits = generate(model, inputs, 3)
            trace, grid, report = session.trace, session.grid, session.report()
        assert trace.n_visual == (int(gone.sum()),)
        assert report.n_visual == int(gone.sum())
        assert len(trace.kept(1)) == 0
        nowhere = grid.row[0] == -1
        assert int(nowhere.sum()) == (0 if choice == "keep" else int(structure.sum()))
        expected = masked_logits(model, inputs, ids[0, :-1], trace, visual=gone)[len(gone) - 1 :]
        assert deviation(logits[0], expected) < TOLERANCE


@pytest.mark.parametrize("name", NAMES)
def test_text_is_what_is_neither_visual_nor_a_line_end(name: str) -> None:
    family = FAMILIES[name]
    model = family.model()
    inputs = family.prompt(model, family.row)
    text = inputs["input_ids"][0][~family.placeholders(inputs)[0]]
    probe = Probe(at=(2,))
    with trim(model, probe), torch.no_grad():
        model(**inputs)
    embeds, real = probe._seen[2]["text_embeds"]
    assert torch.equal(embeds[0][real[0]], model.get_input_embeddings()(text))
    assert int(probe._seen[2]["text_rows"][1].sum()) == len(text)


def test_a_configuration_may_say_what_becomes_of_line_ends() -> None:
    family = FAMILIES["llava-next"]
    model = family.model()
    inputs = family.prompt(model, family.row)
    text = "strategy: {name: random, keep_ratio: 0.5}\nstructure: prune\n"
    counts: dict[str | None, int] = {}
    for structure in (None, "keep", "prune"):
        with trim(model, text, structure=structure) as session, torch.no_grad():  # type: ignore[arg-type]
            model(**inputs)
            counts[structure] = session.trace.n_visual[0]
    assert counts[None] == counts["prune"] == counts["keep"] + int(family.structure(model, inputs).sum())
    with pytest.raises(ConfigError, match="be keep or prune"):
        trim(model, "none", structure="drop")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="option of trim, run and plan"):
        strategy_from(text).as_dict()


@pytest.mark.parametrize("structure", ["keep", "prune"])
@pytest.mark.parametrize("name", NAMES)
def test_a_plan_for_the_images_size_is_what_is_measured(name: str, structure: Any) -> None:
    family = FAMILIES[name]
    model = family.model()
    inputs = family.prompt(model, [4, "image:30x20", 3])
    strategy = strategy_from(SPECS["st3"]).strategy
    with trim(model, strategy, structure=structure) as session:
        model.generate(**inputs, max_new_tokens=5, do_sample=False)
        report = session.report()
    shape = adapter_of(model).locate(model).shape
    assert shape.vision is not None
    vision = shape.vision.for_image(30, 20)
    vision = vision if structure == "keep" else vision.with_structure_visual()
    shape = replace(shape, vision=vision)
    planned = plan(strategy, shape, vision.n_visual, 7 + vision.n_structure, new_tokens=5).usage.ratios()
    for key, value in planned.items():
        assert getattr(report, key) == pytest.approx(value), key


# ---------------------------------------------------------------------- refusals


@pytest.mark.parametrize("name", NAMES)
def test_pictures_encoded_elsewhere_are_refused(name: str) -> None:
    family = FAMILIES[name]
    model = family.model()
    inputs = family.prompt(model, [2, "image:30x20", 3])
    given = {key: inputs.pop(key) for key in ("pixel_values", "image_sizes", "batch_num_images") if key in inputs}
    with torch.no_grad():
        output = model.model.get_image_features(**given)
    with trim(model, "fastv"), pytest.raises(UnsupportedError, match="inside the context"):
        model(**inputs, mm_encoder_outputs={"image": output})


@pytest.mark.parametrize("name", NAMES)
def test_features_of_another_number_than_the_geometry_gives_are_refused(name: str) -> None:
    model = FAMILIES[name].model()
    adapter = adapter_of(model)
    layout = adapter.locate(model)
    arguments = MappingProxyType({"image_sizes": torch.tensor([[30, 20]])})
    with pytest.raises(AdapterError, match="has drifted"):
        adapter.places(layout, Encoding("image", arguments, (7,)), 0)
    rows = [noise(1, 5, 2, 17)]
    with pytest.raises((AdapterError, RuntimeError)):
        adapter.arrange(layout, Encoding("image", arguments, (7,)), rows)
    if name != "llava-next":
        with pytest.raises(AdapterError, match="has drifted"):
            adapter.places(layout, Encoding("video", {}, (7,)), 0)


@pytest.mark.parametrize("name", NAMES)
def test_pixels_are_the_pictures_own(name: str) -> None:
    """Pieces that only pad a batch are not among them; a list of all pieces end to end is read alike."""
    family = FAMILIES[name]
    model = family.model()
    adapter = adapter_of(model)
    layout = adapter.locate(model)
    inputs = family.prompt(model, [2, "image:30x20", 3], [2, "image:9x31", 3])
    sizes = [(30, 20), (9, 31)]
    counts = [_pieces(layout, size) for size in sizes]
    names = ("pixel_values", "image_sizes", "batch_num_images")
    arguments = {key: inputs[key] for key in names if key in inputs}
    flat = torch.cat([pixels[:n] for pixels, n in zip(inputs["pixel_values"], counts, strict=True)])
    for pixels in (inputs["pixel_values"], flat):
        encoding = Encoding("image", {**arguments, "pixel_values": pixels}, (1, 1))
        for item, n in enumerate(counts):
            found = adapter.pixels(layout, encoding, item)
            assert torch.equal(found, inputs["pixel_values"][item, :n])
