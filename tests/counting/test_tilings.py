"""Geometry of images of any size, against the processors that make the placeholders."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings, strategies as st
from PIL import Image
from transformers import (
    LlavaNextImageProcessor,
    LlavaNextProcessor,
    LlavaOnevisionProcessor,
    Qwen2VLImageProcessor,
)
from transformers.models.qwen2_5_vl.configuration_qwen2_5_vl import Qwen2_5_VLVisionConfig

from tokentrim.counting.published import PRESETS
from tokentrim.counting.tilings import AnyResolution, FixedGrid, NativeResolution, Tiling
from tokentrim.errors import DataError
from tokentrim.testbed.training.families import FAMILIES
from tokentrim.testbed.training.processors import build_tokenizer

_quick = settings(deadline=None, max_examples=200)
_sizes = st.tuples(st.integers(1, 4000), st.integers(1, 4000))

ONEVISION = AnyResolution(
    pixels=384,
    side=27,
    resolutions=tuple((384 * h, 384 * w) for h in range(1, 7) for w in range(1, 7)),
    limit=9,
    single=True,
)
"""What llava-hf/llava-onevision-qwen2-7b-ov-hf publishes."""


def _tiling(name: str) -> Tiling:
    vision = PRESETS[name].vision
    assert vision is not None
    assert vision.tiling is not None
    return vision.tiling


@lru_cache(maxsize=1)
def _next_processor() -> Any:
    """The processor with the settings of llava-hf/llava-v1.6-vicuna-7b-hf, but the testbed's tokenizer."""
    images = LlavaNextImageProcessor(
        size={"shortest_edge": 336},
        crop_size={"height": 336, "width": 336},
        image_grid_pinpoints=[[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]],
    )
    return LlavaNextProcessor(
        image_processor=images,
        tokenizer=build_tokenizer(FAMILIES["llava-next"]),
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    )


@given(size=_sizes)
@_quick
def test_llava_next_has_the_placeholders_of_its_processor(size: tuple[int, int]) -> None:
    cut = _tiling("llava-next-vicuna-7b").cut(*size)
    [expected] = _next_processor()._get_num_multimodal_tokens(image_sizes=[size]).num_image_tokens
    assert cut.n_visual + cut.n_structure == expected
    assert cut.n_visual == 576 + cut.rows * cut.cols
    assert cut.n_structure == cut.rows


@pytest.mark.parametrize("size", [(480, 640), (1000, 300), (200, 900), (672, 672), (20, 31)])
def test_llava_next_has_the_pieces_and_placeholders_of_a_real_image(size: tuple[int, int]) -> None:
    processor = _next_processor()
    made = processor(text=["<image>"], images=[Image.new("RGB", size[::-1])], return_tensors="pt")
    cut = _tiling("llava-next-mistral-7b").cut(*size)
    assert int((made["input_ids"] == processor.image_token_id).sum()) == cut.n_visual + cut.n_structure
    assert made["pixel_values"].shape[1] == cut.pieces
    assert made["image_sizes"].tolist() == [list(size)]


@given(size=_sizes)
@_quick
def test_llava_onevision_has_the_placeholders_of_its_processor(size: tuple[int, int]) -> None:
    processor: Any = object.__new__(LlavaOnevisionProcessor)  # a whole one needs torchvision, for videos
    processor.num_image_tokens, processor.vision_aspect_ratio = 729, "anyres_max_9"
    processor.image_processor = type("Images", (), {"image_grid_pinpoints": list(ONEVISION.resolutions)})
    expected = processor._get_number_of_features(*size, 384, 384)
    cut = ONEVISION.cut(*size)
    assert cut.n_visual + cut.n_structure == expected
    several = ONEVISION.cut(*size, images=2)
    assert (several.pieces, several.n_visual, several.n_structure) == (1, 729, 1)


def _qwen(name: str) -> Any:
    tiling = _tiling(name)
    assert isinstance(tiling, NativeResolution)
    limits = {"shortest_edge": tiling.min_pixels, "longest_edge": tiling.max_pixels}
    return Qwen2VLImageProcessor(patch_size=tiling.patch, merge_size=tiling.merge, size=limits)


@pytest.mark.parametrize("name", ["qwen2-vl-7b", "qwen2.5-vl-3b", "qwen3-vl-8b"])
@given(size=_sizes)
@_quick
def test_native_resolution_has_the_patches_of_its_processor(name: str, size: tuple[int, int]) -> None:
    assume(max(size) / min(size) <= 200)
    cut = _tiling(name).cut(*size)
    assert cut.tokens == _qwen(name).get_number_of_image_patches(*size, {})
    assert cut.n_visual == cut.rows * cut.cols == cut.tokens // 4


@pytest.mark.parametrize("name", ["qwen2.5-vl-7b", "qwen3-vl-4b"])
@pytest.mark.parametrize("size", [(480, 640), (20, 1000), (33, 47), (700, 200)])
def test_native_resolution_has_the_grid_of_a_real_image(name: str, size: tuple[int, int]) -> None:
    made = _qwen(name)(images=[Image.new("RGB", size[::-1])], return_tensors="pt")
    cut = _tiling(name).cut(*size)
    assert made["image_grid_thw"].tolist() == [[1, 2 * cut.rows, 2 * cut.cols]]


@given(rows=st.integers(1, 30), cols=st.integers(1, 30))
@_quick
def test_windows_have_the_pairs_of_the_models_own_windows(rows: int, cols: int) -> None:
    config = Qwen2_5_VLVisionConfig()
    span = config.window_size // config.patch_size  # patches along a window
    lengths = [
        min(span, 2 * rows - y) * min(span, 2 * cols - x)
        for y in range(0, 2 * rows, span)
        for x in range(0, 2 * cols, span)
    ]
    cut = NativeResolution(patch=14, merge=2, min_pixels=1, max_pixels=10**9, window=112).cut(28 * rows, 28 * cols)
    assert (cut.rows, cut.cols) == (rows, cols)
    assert cut.window_pairs == sum(n * n for n in lengths)
    assert sum(lengths) == cut.tokens


def test_windows_of_the_model_are_these() -> None:
    from transformers.models.qwen2_5_vl import modeling_qwen2_5_vl

    index = getattr(modeling_qwen2_5_vl, "get_vision_window_index", None)
    if index is None:
        pytest.skip("this release of transformers keeps it elsewhere")
    tiling = _tiling("qwen2.5-vl-7b")
    for size in ((224, 224), (280, 560), (476, 112), (28, 28)):
        cut = tiling.cut(*size)
        grid = torch.tensor([[1, 2 * cut.rows, 2 * cut.cols]])
        _, bounds = index(grid, 2, 112, 14)
        lengths = [b - a for a, b in zip(bounds.tolist(), bounds.tolist()[1:], strict=False)]
        assert sum(n * n for n in lengths) == cut.window_pairs


@pytest.mark.parametrize(
    ("size", "visual"),
    [((672, 672), 2880), ((336, 672), 1728), ((480, 640), 2304), ((1008, 336), 2304), ((336, 336), 1152)],
)
def test_llava_next_by_hand(size: tuple[int, int], visual: int) -> None:
    assert _tiling("llava-next-34b").cut(*size).n_visual == visual


def test_the_tiles_of_a_padded_image_by_hand() -> None:
    """640 x 480 pixels (height first) go into 672 x 672: 504 of 672 columns are used, 36 of 48 patch columns."""
    plane = ONEVISION.assembled(640, 480)
    assert (plane.tile_rows, plane.tile_cols) == (2, 2)
    tiling = _tiling("llava-next-vicuna-7b")
    assert isinstance(tiling, AnyResolution)
    plane = tiling.assembled(640, 480)
    assert (plane.left, plane.width, plane.top, plane.height, plane.tiles) == (6, 36, 0, 48, 4)


def test_a_fixed_grid_does_not_ask() -> None:
    tiling = FixedGrid(pixels=336, side=24, cls=1)
    assert tiling.cut(10, 20) == tiling.cut(10, 20, images=3)
    assert tiling.cut(500, 500).n_visual == 576
    assert not tiling.varies
    assert ONEVISION.varies


def test_impossible_sizes_are_refused() -> None:
    with pytest.raises(DataError, match="at least 1x1"):
        _tiling("llava-1.5-7b").cut(0, 5)
    with pytest.raises(DataError, match="200 times"):
        _tiling("qwen2-vl-2b").cut(10, 2001)


@pytest.mark.parametrize(
    "settings_of",
    [
        {"min_pixels": 784, "max_pixels": 7840},
        {"size": {"shortest_edge": 784, "longest_edge": 7840}},
        {"size": {"min_pixels": 784, "max_pixels": 7840}},
    ],
)
def test_limits_come_from_the_image_processors_settings(settings_of: dict[str, Any]) -> None:
    tiling = NativeResolution(patch=14, merge=2, min_pixels=3136, max_pixels=12845056)
    limited = tiling.with_limits(settings_of)
    assert (limited.min_pixels, limited.max_pixels) == (784, 7840)
    assert limited.cut(1000, 1000).n_visual == math.floor(math.sqrt(7840) / 28) ** 2
    assert tiling.with_limits({}) == tiling
