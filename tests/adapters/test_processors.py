"""What adapters say of an image's size, against the image processors themselves."""

from __future__ import annotations

import json
from functools import lru_cache
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings, strategies as st
from PIL import Image
from transformers.image_utils import ChannelDimension
from transformers.models.glm4v.image_processing_pil_glm4v import Glm4vImageProcessorPil
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil
from transformers.models.pixtral.image_processing_pil_pixtral import (
    PixtralImageProcessorPil,
    get_resize_output_image_size,
)
from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil

from tests import tiled
from tests.native import Glm4v, Mistral3
from tokentrim.contracts.adapter import Encoding
from tokentrim.counting.costs import projector_flops
from tokentrim.counting.tilings import Tiling
from tokentrim.errors import DataError
from tokentrim.session import adapter_of

_quick = settings(deadline=None, max_examples=15)
_sizes = st.tuples(st.integers(1, 120), st.integers(1, 120))
_large = st.tuples(st.integers(1, 4000), st.integers(1, 4000))


def _tiling(family: Any, preprocessor: dict[str, Any]) -> Tiling:
    """Of a family's tiny model, as a folder with these settings of its image processor has it."""
    return _tiling_of(type(family), json.dumps(preprocessor))


@lru_cache(maxsize=32)  # many sizes are asked of each
def _tiling_of(family: Any, preprocessor: str) -> Tiling:
    model = family().model()
    adapter = adapter_of(model)
    vision = adapter.preprocessed(adapter.shape(model.config), json.loads(preprocessor)).vision
    assert vision is not None
    assert vision.tiling is not None
    return vision.tiling


def _picture(size: tuple[int, int], seed: int = 0) -> Image.Image:
    """A picture that is not alike anywhere: slopes and blots."""
    height, width = size
    y, x = np.mgrid[0:height, 0:width] / (max(size) + 1)
    blots = np.random.default_rng(seed).random((3, 3, 3))
    where = (y * 3).astype(int).clip(0, 2), (x * 3).astype(int).clip(0, 2)
    return Image.fromarray((255 * (0.3 * np.stack([y, x, y * x], -1) + 0.7 * blots[where])).astype("uint8"))


@pytest.mark.parametrize("processor_class", [Idefics3ImageProcessorPil, SmolVLMImageProcessorPil])
@pytest.mark.parametrize("longest", [64, 48])
@given(size=_sizes)
@_quick
def test_smolvlm_is_cut_as_by_its_processor(processor_class: Any, longest: int, size: tuple[int, int]) -> None:
    settings_of = {"size": {"longest_edge": longest}, "max_image_size": {"longest_edge": tiled.PIXELS}}
    processor = processor_class(**settings_of)
    made = processor([[_picture(size)]], return_row_col_info=True, return_tensors="pt")
    tiling: Any = _tiling(tiled.SmolVLM(), settings_of)
    assert tiling.grid(*size) == (made["rows"][0][0], made["cols"][0][0])
    assert made["pixel_values"].shape[1:] == (tiling.cut(*size).pieces, 3, tiled.PIXELS, tiled.PIXELS)


def test_smolvlm_may_be_told_not_to_cut() -> None:
    cut = _tiling(tiled.SmolVLM(), {"do_image_splitting": False}).cut(100, 30)
    assert (cut.pieces, cut.n_visual, cut.rows, cut.cols) == (1, tiled.EACH, tiled.SIDE, tiled.SIDE)
    assert "one piece" in cut.note


@given(size=_large, limits=st.sampled_from([(1, 12), (1, 6), (2, 4)]))
@settings(deadline=None, max_examples=80)
def test_internvl_has_the_pieces_of_its_processor(size: tuple[int, int], limits: tuple[int, int]) -> None:
    settings_of = {"min_patches": limits[0], "max_patches": limits[1], "size": {"height": 16, "width": 16}}
    processor = GotOcr2ImageProcessorPil(**settings_of, crop_to_patches=True)
    expected = processor.get_number_of_image_patches(*size, {})
    assert _tiling(tiled.InternVL(), settings_of).cut(*size).pieces == expected


@given(size=st.tuples(st.integers(8, 120), st.integers(8, 120)), seed=st.integers(0, 5))
@_quick
def test_internvl_recognises_how_its_processor_arranged_the_tiles(size: tuple[int, int], seed: int) -> None:
    settings_of = {"size": {"height": 16, "width": 16}, "crop_to_patches": True}
    pixels = GotOcr2ImageProcessorPil(**settings_of)([_picture(size, seed)], return_tensors="pt")["pixel_values"]
    family = tiled.InternVL()
    model = family.model()
    adapter = adapter_of(model)
    layout = adapter.locate(model)
    encoding = Encoding("image", {"pixel_values": pixels}, (tiled.EACH,) * len(pixels))
    encoding = Encoding("image", {}, encoding.lengths, adapter.facts(layout, encoding))
    prompt = torch.tensor([5, *[family.image_id] * (tiled.EACH * len(pixels)), 6])
    [found] = adapter.pictures(layout, encoding, [prompt])
    tiling: Any = _tiling(family, settings_of)
    rows, cols = tiling.grid(*size)
    assert (int(found.rows[0]), int(found.cols[0])) == (rows * tiled.SIDE, cols * tiled.SIDE)


@given(size=_large)
@settings(deadline=None, max_examples=80)
def test_mistral3_is_as_large_as_its_processor_makes_it(size: tuple[int, int]) -> None:
    cut = _tiling(Mistral3(), {"size": {"longest_edge": 1540}}).cut(*size)
    image = np.broadcast_to(np.zeros(3, bool), (*size, 3))
    tall, wide = get_resize_output_image_size(image, (1540, 1540), (8, 8), ChannelDimension.LAST)
    assert (8 * cut.rows, 8 * cut.cols) == (tall, wide)


def test_mistral3_has_the_size_of_a_real_image() -> None:
    settings_of: dict[str, Any] = {"size": {"longest_edge": 64}}
    made = PixtralImageProcessorPil(**settings_of, patch_size=8)([_picture((50, 90))], return_tensors="pt")
    cut = _tiling(Mistral3(), settings_of).cut(50, 90)
    assert [list(map(int, size)) for size in made["image_sizes"]] == [[8 * cut.rows, 8 * cut.cols]]


@given(size=_large)
@settings(deadline=None, max_examples=80)
def test_glm4v_has_the_patches_of_its_processor(size: tuple[int, int]) -> None:
    assume(max(size) / min(size) <= 150)
    for settings_of in ({}, {"size": {"shortest_edge": 2048, "longest_edge": 60000}}):
        processor = Glm4vImageProcessorPil(patch_size=4, merge_size=2, **settings_of)
        cut = _tiling(Glm4v(), settings_of).cut(*size)
        assert cut.tokens == processor.get_number_of_image_patches(*size, {})
        assert cut.n_visual == cut.rows * cut.cols == cut.tokens // 4


@pytest.mark.parametrize("family", [tiled.SmolVLM(), tiled.InternVL(), Mistral3(), Glm4v()], ids=lambda f: f.name)
def test_impossible_sizes_are_refused(family: Any) -> None:
    with pytest.raises(DataError, match="at least 1x1"):
        _tiling(family, {}).cut(0, 5)


_PROJECTORS = {
    "smolvlm": ("connector",),
    "internvl": ("multi_modal_projector",),
    "mistral3": ("multi_modal_projector",),
    "glm4v": ("visual.downsample", "visual.merger"),
}


@pytest.mark.parametrize("family", [tiled.SmolVLM(), tiled.InternVL(), Mistral3(), Glm4v()], ids=lambda f: f.name)
def test_a_token_passes_the_weights_of_the_projector(family: Any) -> None:
    model = family.model()
    parts = [model.model.get_submodule(name) for name in _PROJECTORS[family.name]]
    weights = sum(weight.numel() for part in parts for weight in part.parameters() if weight.dim() > 1)
    shape = adapter_of(model).locate(model).shape
    assert shape.vision is not None
    assert shape.vision.projector_weights == weights
    assert projector_flops(shape, shape.vision.n_visual) == 2 * weights * shape.vision.n_visual
