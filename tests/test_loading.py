"""Shapes by preset, registered name and folder; and what of a folder is neither believed nor run."""

from __future__ import annotations

import json
import os
import re
import runpy
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from tokentrim import testbed
from tokentrim.bench import BenchOptions
from tokentrim.cli.show import find
from tokentrim.counting.published import PRESETS
from tokentrim.errors import ConfigError, DataError, TokentrimError, UnknownNameError, UnsupportedError
from tokentrim.loading import load_image, load_model, models as loading_models, resolve_folder, shape_of
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
        assert replace(vision.for_image(100, 900), image=vision.image) == vision
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


def test_what_only_a_checkout_has_is_left_out_of_wheels_and_said_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """As a wheel has it: the folder is not there, so nothing lists its name."""
    packaging = Path(__file__).parent.parent.joinpath("pyproject.toml").read_text(encoding="utf-8")
    assert re.findall(r'"/tokentrim/testbed/models/(.*?)"', packaging) == list(loading_models._NOT_IN_WHEELS)
    (tmp_path / "models/testbed").mkdir(parents=True)
    shutil.copy(testbed.__file__, tmp_path / "testbed.py")
    assert runpy.run_path(str(tmp_path / "testbed.py"))["MODELS"] == ("testbed",)
    monkeypatch.delitem(registry("model")._entries, "testbed-plain")
    for ask in (load_model, shape_of, find, lambda name: BenchOptions(geometry=name)):
        with pytest.raises(UnknownNameError, match="comes with a checkout of tokentrim's source, .*Known: ") as refused:
            ask("testbed-plain")
        assert "testbed-plain" not in str(refused.value).partition("Known: ")[2]


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


# ---------------------------------------------------------------------- folders of strangers


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of a model's folder, its weights as a link."""
    made = tmp_path / "model"
    made.mkdir()
    for file in resolve_folder("testbed-plain").iterdir():
        if file.suffix == ".safetensors":
            (made / file.name).symlink_to(file)
        else:
            shutil.copy(file, made)
    return made


def change(file: Path, **changes: Any) -> None:
    """Set keys of a JSON file, which need not be there; ``text__hidden_size`` is a key of a key."""
    data = json.loads(file.read_text()) if file.exists() else {}
    for name, value in changes.items():
        *above, last = name.split("__")
        inner = data
        for key in above:
            inner = inner[f"{key}_config"]
        inner[last] = value
    file.write_text(json.dumps(data))


_IMAGES = {"image_processor_type": "Own", "auto_map": {"AutoImageProcessor": "own.Own"}}


@pytest.mark.parametrize(
    ("files", "loads"),
    [
        ({"processor_config.json": {"processor_class": "Own", "auto_map": {"AutoProcessor": "own.Own"}}}, False),
        ({"processor_config.json": {"image_processor": _IMAGES}}, False),
        # Transformers asks about these parts of a processor even when it was told that no code is trusted.
        ({"processor_config.json": None, "preprocessor_config.json": _IMAGES,
          "tokenizer_config.json": {"processor_class": None}}, False),
        ({"config.json": {"auto_map": {"AutoConfig": "own.Own", "AutoModelForImageTextToText": "own.Own"}}}, True),
        ({"tokenizer_config.json": {"tokenizer_class": "Own", "auto_map": {"AutoTokenizer": [None, "own.Own"]}}}, True),
        ({"config.json": {"_attn_implementation": "someone/code"}}, False),
    ],
)  # fmt: skip
def test_no_code_of_a_folder_runs(
    files: dict[str, dict[str, Any] | None], loads: bool, folder: Path, monkeypatch: pytest.MonkeyPatch
):
    """Not even when somebody, or a pipe, says yes to transformers' question."""
    monkeypatch.setattr("builtins.input", lambda *question: "y")
    ran = folder.parent / "ran"
    (folder / "own.py").write_text(f"open({str(ran)!r}, 'w').close()\nclass Own: pass\n")
    for name, changes in files.items():
        if changes is None:
            (folder / name).unlink()
        else:
            change(folder / name, **changes)
    if loads:
        load_model(folder)
    else:
        with pytest.raises(TokentrimError, match="no code"):
            load_model(folder)
    assert not ran.exists()


def _less(weights: dict[str, Any], name: str) -> None:
    del weights[name]


def _more(weights: dict[str, Any], name: str) -> None:
    weights[f"{name}.own"] = torch.zeros(2)


def _other(weights: dict[str, Any], name: str) -> None:
    weights[name] = weights[name][:-1].clone()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (_less, "these are missing; got 'model.language_model.layers.3.mlp.up_proj.weight'"),
        (_more, "no place for; got '.*layers.3.mlp.up_proj.weight.own'"),
        (_other, "layers.3.mlp.up_proj.weight"),
        ({"text__num_hidden_layers": 7}, "these are missing; got '.*layers.6.*, and 7 more'"),
        ({"text__num_hidden_layers": 5}, "no place for; got '.*layers.5"),
    ],
)
def test_a_checkpoint_of_other_weights_is_refused(
    wrong: Callable[[dict[str, Any], str], None] | dict[str, Any], message: str, folder: Path
):
    if isinstance(wrong, dict):
        change(folder / "config.json", **wrong)
    else:
        file = folder / "model.safetensors"
        weights = load_file(file)
        wrong(weights, next(name for name in weights if name.endswith("layers.3.mlp.up_proj.weight")))
        file.unlink()
        save_file(weights, file, metadata={"format": "pt"})
    with pytest.raises(DataError, match=message):
        load_model(folder)


def test_tied_weights_are_not_missing(folder: Path):
    change(folder / "config.json", tie_word_embeddings=True, text__tie_word_embeddings=True)
    file = folder / "model.safetensors"
    weights = load_file(file)
    del weights[next(name for name in weights if name.startswith("lm_head") or ".lm_head" in name)]
    file.unlink()
    save_file(weights, file, metadata={"format": "pt"})
    model = load_model(folder).model
    assert torch.equal(model.lm_head.weight, model.get_input_embeddings().weight)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"text__vocab_size": "x"}, "vocab_size"),
        ({"text__use_cache": "x"}, "use_cache"),
        ({"text_config": {"model_type": "x"}}, "x"),
        ({"text__num_attention_heads": 0}, "ZeroDivisionError|whole number"),
        ({"text__num_key_value_heads": 3}, "be shared by its 3 key/value heads"),
        ({"text__num_hidden_layers": 10**12}, "be at most 10000"),
        ({"text__num_labels": 10**9}, "be at most 10000"),
        ({"text__hidden_size": -8}, "whole number"),
        ({"text__hidden_size": 10**400}, "whole number"),
        ({"vision__image_size": 4}, "one visual token at least"),
        ({"vision__patch_size": 0}, "ZeroDivisionError"),
        ({"vision__patch_size": [8]}, "TypeError"),
        ({"vision_config": None, "vision_feature_select_strategy": 3}, "vision_feature_select_strategy"),
        ({"dtype": "load"}, "dtype|AttributeError|IndexError"),
    ],
)
def test_a_config_that_describes_no_model_is_refused_with_its_file(changes: dict[str, Any], message: str, folder: Path):
    change(folder / "config.json", **changes)
    for read in (shape_of, load_model):
        with pytest.raises((ConfigError, DataError), match=rf"config\.json[\s\S]*({message})"):
            read(folder)


@pytest.mark.parametrize(
    "settings",
    [{"min_pixels": "x"}, {"max_pixels": float("inf")}, {"size": {"shortest_edge": "x", "longest_edge": 10**30}},
     {"min_pixels": 10**20}],
)  # fmt: skip
def test_an_image_processor_of_no_sense_is_refused_with_its_file(settings: dict[str, Any], tmp_path: Path):
    change(tmp_path / "config.json", model_type="qwen2_vl")
    change(tmp_path / "preprocessor_config.json", **settings)
    with pytest.raises(ConfigError, match=r"preprocessor_config\.json"):
        shape_of(tmp_path)


def test_a_folder_holds_regular_files(folder: Path):
    (folder / "big").mkdir()
    change(folder / "big" / "config.json", model_type="llava", text="x" * (1 << 24))
    with pytest.raises(DataError, match="readable JSON"):
        shape_of(folder / "big")
    os.mkfifo(folder / "preprocessor_config.json")
    for read in (shape_of, load_model):
        with pytest.raises(DataError, match="no pipes or devices; got \\['preprocessor_config.json'\\]"):
            read(folder)
    for name in ("x" * 300, "a\0b"):
        with pytest.raises(UnknownNameError):
            load_model(name)
    with pytest.raises(DataError, match="a pipe"):
        load_image(folder / "preprocessor_config.json")


def test_settings_of_generation_that_cannot_be_read_are_not_passed_over(folder: Path):
    change(folder / "generation_config.json", return_dict_in_generate=True)
    assert load_model(folder).model.generation_config.return_dict_in_generate is False
    (folder / "generation_config.json").write_text("{")
    with pytest.raises(DataError, match=r"generation_config\.json must be readable JSON"):
        load_model(folder)


def test_a_chat_template_that_fails_is_named(folder: Path):
    from tokentrim.loading import prompt_inputs

    (folder / "chat_template.jinja").write_text("{{ raise_exception('no') }}")
    with pytest.raises(DataError, match="accepted by the model's processor"):
        prompt_inputs(load_model(folder).processor, ["a"], [[Image.new("RGB", (80, 80))]])
