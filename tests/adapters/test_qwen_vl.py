"""Qwen2-VL, Qwen2.5-VL and Qwen3-VL: the oracles on pictures of any size, on videos, under M-RoPE and DeepStack."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface

from tests.engine.cases import (
    ANEW,
    ATTENDING,
    ATTENDING_OTHERWISE,
    FIRST,
    RENUMBERED,
    SPECS,
    dealt,
    deviation,
    generate,
    merges,
    with_weights,
)
from tests.engine.probes import Probe
from tests.masked import masked_logits
from tests.qwen import KINDS, MERGE, Kind, Part, alone, prompt, tiny_qwen, visual_of
from tokentrim.config.specs import strategy_from
from tokentrim.contracts.sites import Need
from tokentrim.errors import StrategyError
from tokentrim.session import Session, adapter_of, trim

TOLERANCE = 1e-4

# Different sizes, two images in a row, a video with an image, and no image at all.
ROWS: tuple[list[Part], ...] = (
    [3, ("image", 4, 6), 5],
    [2, ("image", 3, 3), 4, ("image", 2, 5), 6],
    [4, ("video", 3, 2, 4), 3, ("image", 2, 2), 2],
    [7],
)

_model: Callable[..., Any] = lru_cache(maxsize=8)(tiny_qwen)


def _trimmed(model: Any, spec: Any, inputs: dict[str, Tensor]) -> Session:
    session = trim(model, with_weights(model, spec))
    if Need.EVIDENCE in session.strategy.needed():
        rows = zip(inputs["input_ids"], visual_of(inputs), strict=True)
        seeds = [(int(ids[~visual].sum()), int(visual.sum())) for ids, visual in rows]
        session.annotate(evidence=[torch.rand(n, generator=torch.Generator().manual_seed(s)) for s, n in seeds])
    return session


def _check(model: Any, spec: Any, rows: tuple[list[Part], ...], steps: int, *, renumber: bool = False) -> None:
    """Every row of a batch answers like the row alone, and that like the untouched model with masks."""
    inputs = prompt(model, *rows)
    if spec.get("name") == "tome":
        pytest.skip("merges in towers of another make")
    try:
        _trimmed(model, spec, inputs)
    except StrategyError as refusal:  # before anything runs
        pytest.skip(str(refusal))
    if spec.get("name") == "quecc":
        pytest.skip("serves models whose pictures are one grid of one size")
    with _trimmed(model, spec, inputs) as session:
        ids, logits = generate(model, inputs, steps)
        trace = session.trace
    for row in range(len(rows)):
        single = alone(inputs, row)
        with _trimmed(model, spec, single) as session:
            own_ids, own_logits = generate(model, single, steps)
            own = session.trace if "pixel_values" in single or "pixel_values_videos" in single else None
        assert ids[row].tolist() == own_ids[0].tolist()
        assert deviation(logits[row], own_logits[0]) < TOLERANCE
        if own is None:
            continue
        for layer in range(own.n_layers):
            assert torch.equal(trace.kept(layer, row), own.kept(layer))
        if merges(strategy_from(spec).strategy):
            continue
        visual = visual_of(single)[0]
        expected = masked_logits(model, single, own_ids[0][:-1], own, visual=visual, renumber=renumber)
        assert deviation(own_logits[0], expected[len(visual) - 1 :]) < TOLERANCE


@pytest.mark.parametrize(("name", "kind"), [*dealt(FIRST, KINDS[::-1]), *dealt(ATTENDING_OTHERWISE, KINDS)])
def test_dropping_is_masking_and_a_row_is_the_row_alone(name: str, kind: Kind) -> None:
    _check(_model(kind), SPECS[name], ROWS, 6)


@pytest.mark.parametrize(("name", "kind"), dealt(ATTENDING, KINDS))
def test_eager_attention(name: str, kind: Kind) -> None:
    _check(_model(kind, attention="eager"), SPECS[name], ROWS, 6)


@pytest.mark.parametrize(("name", "kind"), dealt(ANEW, ["qwen2_5_vl", "qwen3_vl"]))
def test_renumbered_positions(name: str, kind: Kind) -> None:
    _check(_model(kind), RENUMBERED[name], ROWS, 6, renumber=True)


@pytest.mark.parametrize(
    ("kind", "boundary", "count"),
    [
        *(("qwen3_vl", boundary, count) for boundary in (0, 1, 2, 3, 5) for count in (0, 2, 24)),
        *(("qwen2_vl", boundary, count) for boundary, count in zip((0, 1, 2, 3, 5), (1, 0, 23, 2, 24), strict=True)),
    ],
)
def test_every_boundary_and_extreme_counts(kind: Kind, boundary: int, count: int) -> None:
    """Boundaries 0 to 2 of Qwen3-VL lie among the layers that DeepStack adds features behind."""
    spec = {"name": "random", "keep_count": count, "boundary": boundary}
    _check(_model(kind), spec, ROWS[:1], 4)


@pytest.mark.parametrize("kind", KINDS)
def test_decoding_goes_on_from_the_right_position_for_24_steps(kind: Kind) -> None:
    _check(_model(kind), {"name": "random", "keep_count": 2, "boundary": 1}, (ROWS[0], ROWS[2]), 24)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("kind", KINDS)
def test_keeping_everything_changes_no_bit(kind: Kind, attention: str) -> None:
    model = _model(kind, attention=attention)
    inputs = prompt(model, *ROWS)
    ids, logits = generate(model, inputs, 6)
    with torch.no_grad():
        direct = model(**inputs).logits
    for spec in ("none", "{name: random, keep_ratio: 1.0}", "{name: fastv, k: 1, keep_ratio: 1.0}"):
        with trim(model, spec) as session, torch.no_grad():
            kept_ids, kept_logits = generate(model, inputs, 6)
            assert session.trace.n_visual == (24, 19, 28, 0)
            assert torch.equal(model(**inputs).logits, direct), spec
        assert torch.equal(ids, kept_ids), spec
        assert torch.equal(logits, kept_logits), spec


@pytest.mark.parametrize("spec", ["none", "{name: random, keep_ratio: 0.4}", "st3"])
@pytest.mark.parametrize("kind", KINDS)
def test_beams(kind: Kind, spec: str) -> None:
    """Rows of a batch under beam search are the rows alone; with everything kept, the untouched model's."""
    model = _model(kind)
    inputs = prompt(model, *ROWS[:3])
    plain = _beams(model, inputs)[0] if spec == "none" else None
    with trim(model, spec):
        found, _ = _beams(model, inputs)
        alone_rows = [_beams(model, alone(inputs, row))[0][0] for row in range(3)]
    assert [row.tolist() for row in found] == [row.tolist() for row in alone_rows]
    assert plain is None or torch.equal(found, plain)


def _beams(model: Any, inputs: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    out = model.generate(**inputs, max_new_tokens=5, num_beams=2, do_sample=False, return_dict_in_generate=True)
    return out.sequences[:, inputs["input_ids"].shape[1] :], out.sequences


@pytest.mark.parametrize("kind", KINDS)
def test_the_grid_names_picture_frame_row_and_column(kind: Kind) -> None:
    model = _model(kind)
    inputs = prompt(model, *ROWS[:3])
    with trim(model, "none") as session, torch.no_grad():
        model(**inputs)
        grid = session.grid
    expected = [
        [(0, 0, y, x, 4, 6) for y in range(4) for x in range(6)],
        [(0, 0, y, x, 3, 3) for y in range(3) for x in range(3)]
        + [(1, 0, y, x, 2, 5) for y in range(2) for x in range(5)],
        # Images are numbered before videos, wherever they stand.
        [(1, t, y, x, 2, 4) for t in range(3) for y in range(2) for x in range(4)]
        + [(0, 0, y, x, 2, 2) for y in range(2) for x in range(2)],
    ]
    names = ("image", "frame", "row", "col", "rows", "cols")
    for row, tokens in enumerate(expected):
        columns = [getattr(grid, name)[row, : len(tokens)].tolist() for name in names]
        assert list(zip(*columns, strict=True)) == tokens
        assert bool((grid.row[row, len(tokens) :] == -1).all())


@pytest.mark.parametrize("kind", KINDS)
def test_vision_rows_are_what_each_token_receives(kind: Kind) -> None:
    """Against full attention maps of the tower, read one picture at a time, patch by patch."""
    model = _model(kind)
    inputs = prompt(model, *ROWS[:3])
    blocks = (-2, -1, 0, 1)
    probe = Probe(at=(0,), blocks=blocks)
    with trim(model, probe), torch.no_grad():
        generate(model, inputs, 1)
    for row in range(3):
        single = alone(inputs, row)
        for number, block in enumerate(blocks):
            expected = _slow_rows(model, single, block)
            found = probe._seen[0]["vision_rows"][row, number, :, : expected.shape[1]]
            torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-4)


def _slow_rows(model: Any, inputs: dict[str, Tensor], block: int) -> Tensor:
    """[H, N] in the order of the prompt: mean over queries, then over the 2 x 2 patches, of a block's full map."""
    found: dict[str, list[Tensor]] = {}
    for modality, name in (("image", "pixel_values"), ("video", "pixel_values_videos")):
        if name in inputs:
            grid = inputs[f"{modality}_grid_thw"]
            pictures = inputs[name].split(grid.prod(-1).tolist())
            found[modality] = [
                _one_picture(model, pixels, size, block) for pixels, size in zip(pictures, grid, strict=True)
            ]
    ids = inputs["input_ids"][0]
    rows = torch.zeros(2, len(ids))
    for modality, token in (("image", model.config.image_token_id), ("video", model.config.video_token_id)):
        if modality in found:
            rows[:, ids == token] = torch.cat(found[modality], dim=1)
    return rows[:, visual_of(inputs)[0]]


def _one_picture(model: Any, pixels: Tensor, size: Tensor, block: int) -> Tensor:
    maps: list[Tensor] = []
    tower = model.model.visual
    blocks = list(tower.blocks)
    number = block % len(blocks)
    full = getattr(tower.config, "fullatt_block_indexes", None)
    if full is not None and number not in full:
        number = max((one for one in full if one < number), default=full[0])

    def watched(module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, **options: Any) -> Any:
        weights = torch.softmax(query @ key.transpose(2, 3) * options["scaling"], dim=-1)
        if module is blocks[number].attn:
            maps.append(weights[0])
        return (weights @ value).transpose(1, 2), None

    AttentionInterface.register("watched", watched)
    AttentionMaskInterface.register("watched", AttentionMaskInterface()["eager"])
    config = tower.config
    before = config._attn_implementation
    config._attn_implementation_internal = "watched"
    try:
        with torch.no_grad():
            tower(pixels, grid_thw=size.unsqueeze(0))
    finally:
        config._attn_implementation_internal = before
    received = torch.cat([weights.mean(1) for weights in maps], dim=1)
    per_token = received.unflatten(1, (-1, MERGE**2)).mean(-1)
    return per_token[:, _raster_of_windows(tower.config, size)]


def _raster_of_windows(config: Any, size: Tensor) -> list[int]:
    """Where each token, in raster order, stands in the tower's sequence, by walking its windows."""
    frames, rows, cols = int(size[0]), int(size[1]) // MERGE, int(size[2]) // MERGE
    if not getattr(config, "window_size", None):
        return list(range(frames * rows * cols))
    side = config.window_size // MERGE // config.patch_size
    order = [
        (frame * rows + row) * cols + col
        for frame in range(frames)
        for top in range(0, rows, side)
        for left in range(0, cols, side)
        for row in range(top, min(top + side, rows))
        for col in range(left, min(left + side, cols))
    ]
    return [order.index(token) for token in range(len(order))]


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_remains_on_the_model(kind: Kind) -> None:
    model = tiny_qwen(kind, layers=2)
    layout = adapter_of(model).locate(model)
    before = (set(vars(layout.entry)), layout.text_config._attn_implementation, layout.vision_config.to_dict())
    inputs = prompt(model, ROWS[0])
    with trim(model, Probe(at=(0, 1), blocks=(-1,))), torch.no_grad():
        model(**inputs)
    assert (set(vars(layout.entry)), layout.text_config._attn_implementation, layout.vision_config.to_dict()) == before
    hooks = ("_forward_hooks", "_forward_pre_hooks")
    assert not any(getattr(module, name) for module in model.modules() for name in hooks)
