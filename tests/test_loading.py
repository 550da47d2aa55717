"""Shapes by preset, registered name and folder."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tokentrim.counting.published import PRESETS
from tokentrim.errors import DataError, UnknownNameError, UnsupportedError
from tokentrim.loading import load_image, shape_of
from tokentrim.plugins.loader import registry


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_presets_are_named_and_consistent(name: str):
    shape = shape_of(name)
    assert shape.name == name
    assert shape.n_heads % shape.n_kv_heads == 0
    vision = shape.vision
    assert vision is not None
    if name.startswith("llava-1.5"):
        assert vision.n_visual == vision.rows * vision.cols == vision.n_tokens - 1 == 576
        assert vision.for_image(100, 900) == vision
    elif name.startswith("llava"):
        assert (vision.n_visual, vision.n_structure, vision.pieces) == (2880, 48, 5)
    else:
        assert vision.n_visual == vision.rows * vision.cols == vision.n_tokens // 4
    assert vision.varies is not name.startswith("llava-1.5")


@pytest.mark.parametrize(
    ("name", "billions"),
    [("llava-next-vicuna-7b", 6.7), ("llava-next-mistral-7b", 7.2), ("llava-next-vicuna-13b", 13.0),
     ("llava-next-34b", 34.4), ("qwen2-vl-2b", 1.54), ("qwen2-vl-7b", 7.6), ("qwen2-vl-72b", 72.7),
     ("qwen2.5-vl-3b", 3.1), ("qwen2.5-vl-32b", 32.8), ("qwen3-vl-2b", 1.72), ("qwen3-vl-4b", 4.0),
     ("qwen3-vl-8b", 8.2), ("qwen3-vl-32b", 32.8)],
)  # fmt: skip
def test_presets_have_the_published_number_of_parameters(name: str, billions: float):
    """Of the language model, from its matrices alone; the small Qwens tie the head to the embedding."""
    shape = PRESETS[name]
    d, wide, narrow = shape.hidden_size, shape.n_heads * shape.head_dim, shape.n_kv_heads * shape.head_dim
    layer = 2 * d * wide + 2 * d * narrow + shape.ffn_matrices * d * shape.intermediate_size
    tied = name in {"qwen2-vl-2b", "qwen2.5-vl-3b", "qwen3-vl-2b", "qwen3-vl-4b"}
    total = shape.n_layers * layer + (1 if tied else 2) * d * shape.vocab_size
    assert total / 1e9 == pytest.approx(billions, rel=0.012)


def test_folder_of_a_tiled_model_reads_its_image_processor(tmp_path: Path):
    config = {
        "model_type": "llava_next",
        "image_grid_pinpoints": [[336, 672], [672, 336]],
        "text_config": {"model_type": "llama", "vocab_size": 32064},
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    vision = shape_of(tmp_path).vision
    assert vision is not None
    assert (vision.n_visual, vision.pieces) == (576 + 576, 3)  # 672 x 672 pixels in two tiles, half of them padding
    for name, settings in (
        ("preprocessor_config.json", {"image_grid_pinpoints": [[672, 672]]}),
        ("processor_config.json", {"image_processor": {"image_grid_pinpoints": [[672, 672]]}}),
    ):
        (tmp_path / name).write_text(json.dumps(settings))
        shape = shape_of(tmp_path)
        assert shape.vision is not None
        assert (shape.vision.n_visual, shape.vision.pieces) == (2880, 5)
        (tmp_path / name).write_text("{")
        with pytest.raises(DataError, match="readable JSON"):
            shape_of(tmp_path)
        (tmp_path / name).unlink()


def test_folder_of_a_model_of_native_resolution_reads_its_limits(tmp_path: Path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "qwen2_5_vl"}))
    before = shape_of(tmp_path).vision
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"min_pixels": 784, "max_pixels": 28 * 28 * 100}))
    after = shape_of(tmp_path).vision
    assert before is not None
    assert after is not None
    assert (before.n_visual, after.n_visual) == (576, 100)
    assert after.for_image(2000, 1000).n_visual <= 100


def test_folder_with_a_config_alone(tmp_path: Path):
    config = {
        "model_type": "llava",
        "image_token_index": 7,
        "vision_feature_select_strategy": "default",
        "vision_config": {
            "model_type": "clip_vision_model",
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "image_size": 56,
            "patch_size": 14,
        },
        "text_config": {
            "model_type": "llama",
            "hidden_size": 48,
            "intermediate_size": 96,
            "num_hidden_layers": 5,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "vocab_size": 100,
        },
    }
    folder = tmp_path / "toy"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    shape = shape_of(folder)
    assert (shape.n_layers, shape.hidden_size, shape.n_heads, shape.n_kv_heads) == (5, 48, 4, 2)
    assert (shape.head_dim, shape.intermediate_size, shape.vocab_size) == (12, 96, 100)
    assert shape.name == "toy"
    vision = shape.vision
    assert vision is not None
    assert (vision.n_visual, vision.rows, vision.cols, vision.n_layers) == (16, 4, 4, 3)


def test_text_config_defaults_are_those_of_the_family(tmp_path: Path):
    """A published config.json leaves out what equals Llama's defaults."""
    (tmp_path / "config.json").write_text(
        json.dumps({"model_type": "llava", "text_config": {"model_type": "llama", "vocab_size": 32064}})
    )
    shape, preset = shape_of(tmp_path), PRESETS["llava-1.5-7b"]
    for name in ("n_layers", "hidden_size", "n_heads", "n_kv_heads", "head_dim", "intermediate_size", "vision"):
        assert getattr(shape, name) == getattr(preset, name)


def test_registered_model():
    models = registry("model")
    if "testbed" not in models or not (Path(models.get("testbed")()) / "config.json").is_file():
        pytest.skip("the testbed's model is not there")
    shape = shape_of("testbed")
    assert shape.name == "testbed"
    assert shape.vision is not None


def test_misspelt_name_suggests_the_nearest():
    with pytest.raises(UnknownNameError, match=r"Did you mean 'llava-1\.5-7b'"):
        shape_of("llava-1.5-7")


def test_folder_without_config(tmp_path: Path):
    with pytest.raises(DataError, match=r"hold a config\.json"):
        shape_of(tmp_path)


def test_unknown_family_lists_the_known_ones(tmp_path: Path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "lava"}))
    with pytest.raises(UnsupportedError, match="llava"):
        shape_of(tmp_path)


def test_a_picture_is_loaded_as_viewers_show_it(tmp_path: Path):
    """Turned as its tag says, with 16 bits of grey scaled to 8, and refused where white is unknown."""
    grey = np.linspace(0, 65535, 4 * 64).astype(np.uint16).reshape(4, 64)
    turned = Image.Exif()
    turned[0x0112] = 6  # "turn a quarter to the right to view"
    Image.fromarray(grey).transpose(Image.Transpose.ROTATE_90).save(tmp_path / "phone.png", exif=turned)
    for name in ("plain.png", "plain.tif", "plain.pgm"):
        Image.fromarray(grey).save(tmp_path / name)
    for name in ("phone.png", "plain.png", "plain.tif", "plain.pgm"):
        seen = np.asarray(load_image(tmp_path / name))
        assert seen.shape == (4, 64, 3)
        assert np.abs(seen - grey[..., None] / 257).max() <= 0.5
    for kind in (np.float32, np.int32):
        Image.fromarray(grey.astype(kind)).save(tmp_path / "wide.tif")
        with pytest.raises(DataError, match="8 or 16 bits"):
            load_image(tmp_path / "wide.tif")
