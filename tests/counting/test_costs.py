"""Accounting against numbers computed by hand and against published columns."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tokentrim.counting.costs import (
    Usage,
    decode_step_flops,
    field_macs,
    head_flops,
    mean_ratios,
    physical_flops,
    projector_flops,
    vision_flops,
)
from tokentrim.counting.published import PRESETS
from tokentrim.counting.shape import ModelShape, VisionShape
from tokentrim.errors import EngineError

LLAVA = PRESETS["llava-1.5-7b"]
TINY = ModelShape(
    n_layers=2,
    hidden_size=8,
    n_heads=4,
    n_kv_heads=2,
    head_dim=2,
    intermediate_size=16,
    vocab_size=10,
    bytes_per_element=4,
    vision=VisionShape(n_layers=3, hidden_size=4, intermediate_size=6, n_tokens=5, n_visual=4, rows=2, cols=2),
)


def test_field_convention_by_hand():
    # n = 3, d = 8, m = 16: 4*3*64 + 2*9*8 + 2*3*8*16
    assert field_macs(3, TINY) == 768 + 144 + 768


@pytest.mark.parametrize(("name", "published"), [("llava-1.5-7b", 99.2), ("llava-1.5-13b", 154.4)])
def test_field_convention_gives_the_published_macs_per_layer(name: str, published: float):
    assert round(field_macs(576 + 35, PRESETS[name]) / 1e9, 1) == published


def test_physical_convention_by_hand():
    # Q and O: 2*8*8 per token; K and V: 2*8*4; QK^T and AV: 2*n_keys*8; three feed-forward matrices of 8*16.
    one_query = 2 * (128 + 64 + 2 * 5 * 8 + 3 * 128)
    assert physical_flops(1, 5, TINY) == one_query
    assert physical_flops(3, 5, TINY) == 3 * one_query


def test_physical_convention_counts_a_plain_feed_forward_part_with_two_matrices():
    assert physical_flops(1, 5, TINY) - physical_flops(1, 5, replace(TINY, ffn_matrices=2)) == 2 * 8 * 16


def test_physical_convention_of_a_full_prefill():
    assert 32 * physical_flops(611, 611, LLAVA) / 1e12 == pytest.approx(8.11, abs=0.005)


def test_decode_step_sums_layers_and_head():
    assert decode_step_flops([5, 7], TINY) == physical_flops(1, 5, TINY) + physical_flops(1, 7, TINY) + 160


def test_vision_tower_projector_and_head():
    assert vision_flops(LLAVA) / 2e12 == pytest.approx(0.19, abs=0.002)  # TMAC of CLIP-L/14 at 336 pixels
    assert vision_flops(TINY, n_images=2) == 2 * 2 * 3 * (4 * 5 * 16 + 2 * 25 * 4 + 2 * 5 * 24)
    assert projector_flops(TINY, 4) == 2 * 4 * 8 * (4 + 8)
    assert head_flops(TINY, 3) == 2 * 3 * 80
    blind = replace(TINY, vision=None)
    assert vision_flops(blind) == projector_flops(blind, 4) == 0


def test_vision_tower_of_tiles_counts_every_piece_and_all_that_is_projected():
    shape = PRESETS["llava-next-vicuna-7b"]
    assert vision_flops(shape) == 5 * vision_flops(LLAVA)
    assert projector_flops(shape, 2880) == projector_flops(LLAVA, 5 * 576)
    narrow = replace(shape, vision=shape.vision.for_image(672, 168))  # a quarter of the tiles' columns is left
    assert narrow.vision.n_visual == 576 + 12 * 48
    assert projector_flops(narrow, narrow.vision.n_visual) == projector_flops(LLAVA, 3 * 576)


def test_windowed_blocks_and_mergers_by_hand():
    vision = VisionShape(
        n_layers=3, hidden_size=4, intermediate_size=6, n_tokens=16, n_visual=4, rows=2, cols=2, ffn_matrices=3,
        windowed_layers=2, window_pairs=64, merge=2, mergers=2,
    )  # fmt: skip
    shape = replace(TINY, vision=vision)
    assert vision_flops(shape) == 2 * (3 * (4 * 16 * 16 + 3 * 16 * 24) + 2 * 4 * (16 * 16 + 2 * 64))
    assert projector_flops(shape, 4) == 2 * 4 * 2 * 16 * (16 + 8)


def test_first_forward_adds_up():
    usage = Usage(TINY, 8, 3, (8, 4))  # two images of four tokens
    layers = physical_flops(11, 11, TINY) + physical_flops(7, 7, TINY)
    assert usage.prefill_flops == layers
    extra = vision_flops(TINY, 2) + projector_flops(TINY, 8) + head_flops(TINY)
    assert usage.prefill_flops_whole == layers + extra


def test_ratios_by_hand():
    usage = Usage(TINY, 8, 2, (8, 4), cached=((8, 4), (4, 4), (2, 0)))
    assert usage.layer_mean_tokens == 6
    assert usage.layer_mean_ratio == usage.kv_peak_ratio == 12 / 16
    assert usage.kv_mean_ratio == (12 + 8 + 2) / 48
    assert usage.kv_end_ratio == 2 / 16
    total = [(12 + 2 * 3) / (16 + 2 * 3), (8 + 2 * 4) / (16 + 2 * 4), (2 + 2 * 5) / (16 + 2 * 5)]
    assert usage.kv_total_mean_ratio == pytest.approx(sum(total) / 3)
    assert usage.macs_per_layer == (field_macs(10, TINY) + field_macs(6, TINY)) / 2
    assert usage.flops_ratio_field == pytest.approx(usage.macs_per_layer / field_macs(10, TINY))


def test_cache_bytes_by_hand():
    usage = Usage(TINY, 8, 2, (8, 4), cached=((8, 4), (4, 4)))
    per_token = 2 * 2 * 2 * 4  # key and value, two heads, two wide, four bytes
    assert usage.kv_visual_bytes(0) == 12 * per_token
    assert usage.kv_bytes(0) == (12 + 2 * 2) * per_token
    assert usage.kv_bytes(2) == (8 + 2 * 4) * per_token
    assert usage.kv_bytes_mean == (usage.kv_bytes(1) + usage.kv_bytes(2)) / 2


def test_llava_caches_half_a_mebibyte_per_token():
    usage = Usage(LLAVA, 1, 0, (1,) * 32)
    assert usage.kv_bytes(0) == 512 * 1024


def test_without_decoding_every_cache_ratio_is_the_peak():
    usage = Usage(TINY, 8, 2, (8, 4))
    assert usage.kv_mean_ratio == usage.kv_end_ratio == usage.kv_peak_ratio
    assert usage.kv_total_mean_ratio == pytest.approx((12 + 4) / (16 + 4))
    assert usage.kv_bytes_mean == usage.kv_bytes(0)
    assert usage.decode_flops == 0
    assert usage.decode_flops_ratio == 1


def test_unpruned_run_is_one_everywhere():
    usage = Usage(TINY, 8, 2, (1, 0), cached=((0, 0),)).unpruned()
    assert all(value == 1 for name, value in usage.ratios().items() if name != "layer_mean_tokens")


def test_prompt_without_visual_tokens_is_unpruned():
    usage = Usage(TINY, 0, 2, (0, 0), cached=((0, 0),))
    assert usage.layer_mean_ratio == usage.kv_mean_ratio == usage.flops_ratio == 1


def test_decoding_is_dominated_by_weights():
    full = (576,) * 32
    empty = Usage(LLAVA, 576, 35, full, ((0,) * 32,) * 63)
    assert 0.97 <= empty.decode_flops_ratio <= 0.985


def test_average_gives_every_sample_the_same_weight():
    usages = [Usage(TINY, 8, 2, (8, 8)), Usage(TINY, 100, 2, (50, 50))]
    assert mean_ratios(usages)["layer_mean_ratio"] == 0.75
    with pytest.raises(EngineError, match="at least one sample"):
        mean_ratios([])


@pytest.mark.parametrize("counts", [(8,), (8, 9), (8, -1)])
def test_impossible_counts_are_refused(counts: tuple[int, ...]):
    with pytest.raises(EngineError, match="visual counts of a usage"):
        Usage(TINY, 8, 2, counts)
    with pytest.raises(EngineError, match="visual counts of a usage"):
        Usage(TINY, 8, 2, (8, 8), cached=(counts,))
