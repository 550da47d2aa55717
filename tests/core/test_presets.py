"""Shapes by preset, registered name and folder."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tokentrim.errors import DataError, UnknownNameError, UnsupportedError
from tokentrim.plugins import registry
from tokentrim.presets import PRESETS, shape_of


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_presets_are_named_and_consistent(name: str):
    shape = shape_of(name)
    assert shape.name == name
    assert shape.n_heads * shape.head_dim == shape.hidden_size
    assert shape.vision is not None
    assert shape.vision.n_visual == shape.vision.rows * shape.vision.cols == shape.vision.n_tokens - 1 == 576


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
