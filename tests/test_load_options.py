"""How models are loaded: one spelling over all commands and files, and what cannot be is refused before weights."""

import json
import shutil
from types import SimpleNamespace

import pytest
import torch
import yaml
from typer.testing import CliRunner

from tokentrim.cli import app
from tokentrim.compare.config import load_compare
from tokentrim.config.specs import load_config
from tokentrim.config.validation import check
from tokentrim.config.yaml_reader import Where
from tokentrim.contracts.load_options import LoadOptions
from tokentrim.errors import ConfigError, DataError, TokentrimError, UnsupportedError
from tokentrim.loading import load_model, require_reader, resolve_folder, weights
from tokentrim.runs.cells import locate
from tokentrim.runs.specs import ModelSpec

EVERYTHING = {"device": "auto", "dtype": "bfloat16", "attn_implementation": "eager", "device_map": {"": "cpu"}}
OPTIONS = ("--dtype", "bfloat16", "--attn-implementation", "eager", "--device-map", "{'': cpu}")
ASK = ("--image", "PICTURE", "--prompt", "list all ?")
FEW = ("--tasks", "where", "--samples", "1")
COMMANDS = {
    "run": ("run", *ASK, "--strategy", "fastv"),
    "chat": ("chat", *ASK, "--strategy", "fastv"),
    "explain": ("explain", *ASK, "--strategy", "fastv", "--out", "OUT"),
    "compare": ("compare", *FEW, "--strategies", "fastv", "--no-timing", "--out", "OUT"),
    "calibrate vtw": ("calibrate", "vtw", *FEW, "--out", "OUT"),
    "calibrate heads": ("calibrate", "heads", *FEW, "--out", "OUT"),
    "train": ("train", "quecc", "--tasks", "where", "--steps", "1", "--out", "OUT"),
}


class Stopped(DataError):
    """Raised in place of loading."""


@pytest.fixture
def called(monkeypatch):
    """What models are asked to be loaded with; none is."""
    found = []

    def stop(name, device="auto", dtype="auto", **more):
        found.append({"device": device, "dtype": dtype, **more})
        raise Stopped("this is as far as it goes")

    for place in ("tokentrim.loading", "tokentrim.runs.cells", "tokentrim.train.runner"):
        monkeypatch.setattr(f"{place}.load_model", stop)
    return found


@pytest.fixture
def command(tmp_path):
    """Call a command line; PICTURE and OUT stand for files."""
    from PIL import Image

    Image.new("RGB", (48, 48)).save(tmp_path / "picture.png")

    def call(*words):
        paths = {"PICTURE": tmp_path / "picture.png", "OUT": tmp_path / "out"}
        result = CliRunner().invoke(app, [str(paths.get(word, word)) for word in words])
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
        return result

    return call


@pytest.mark.parametrize("words", COMMANDS.values(), ids=list(COMMANDS))
def test_every_command_that_loads_a_model_says_alike_how(words, command, called):
    command(*words, *OPTIONS)
    assert called[0] == EVERYTHING


MISSPELT = (
    (("--device-map", "balnced"), "Did you mean 'balanced'?"),
    (("--attn-implementation", "spda"), "Did you mean 'sdpa'?"),
    (("--dtype", "float17"), "Did you mean 'float16'?"),
    (("--device", "cpu", "--device-map", "auto"), "device_map must stand alone; got \"device 'cpu'\""),
)


@pytest.mark.parametrize(
    ("words", "options", "told"),
    [
        *((COMMANDS["run"], *bad) for bad in MISSPELT),
        *((words, *MISSPELT[1]) for name, words in COMMANDS.items() if name != "run"),
    ],
)
def test_what_is_misspelt_is_refused_before_anything_is_loaded(words, options, told, command, called, tmp_path):
    result = command(*words, *options)
    assert result.exit_code == 2
    assert told in " ".join(result.stderr.split())
    assert not called
    assert not (tmp_path / "out").exists()


def test_a_file_says_it_too_and_options_win(command, called, tmp_path):
    file = tmp_path / "own.yaml"
    file.write_text(yaml.safe_dump({"strategy": "fastv", "model": "testbed-plain", **EVERYTHING}))
    assert load_config(file).loading == EVERYTHING
    command("run", *ASK, "--config", file)
    command("run", *ASK, "--config", file, "--dtype", "float32", "--device", "cpu")
    assert called == [
        EVERYTHING,
        {"device": "cpu", "dtype": "float32", "attn_implementation": "eager", "device_map": None},
    ]
    file.write_text("strategy: fastv\ndevice_mop: auto\n")
    with pytest.raises(ConfigError, match=r"own.yaml:2, device_mop.*Did you mean 'device_map'\?"):
        load_config(file)


def test_models_of_a_comparison_say_it_and_errors_name_the_place(tmp_path):
    file = tmp_path / "own.yaml"
    head = "tasks: [where]\nstrategies: [fastv]\nmodels:\n  - model: testbed-plain\n    "
    file.write_text(f"{head}device_map: {{model: cpu, lm_head: 0}}\n    attn_implementation: eager\n")
    model = load_compare(file).models[0]
    assert model.device_map == {"model": "cpu", "lm_head": 0}
    assert load_compare(load_compare(file).to_dict()).models == (model,)
    file.write_text(f"{head}device_map: {{model: gpu}}\n")
    with pytest.raises(ConfigError, match=r"own.yaml:5, .* of 'model' in device_map must be one; got 'gpu'"):
        load_compare(file)


def test_only_what_is_set_is_written_so_that_older_results_stay_valid():
    plain = ModelSpec(model="testbed-plain")
    assert plain.model_dump() == {"model": "testbed-plain", "device": "auto", "dtype": "auto"}
    target = locate(ModelSpec(model="testbed-plain", device="cpu"))
    assert target.placement == ["cpu", "auto"]
    eager = locate(ModelSpec(model="testbed-plain", device="cpu", attn_implementation="eager"))
    assert eager.placement == ["cpu", "auto", {"attn_implementation": "eager"}]
    with pytest.raises(ConfigError, match="Did you mean 'eager'"):
        locate(ModelSpec(model="testbed-plain", attn_implementation="eagre"))


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"device": "gpu"}, "device of a model must be a known one; got 'gpu'"),
        ({"dtype": "half"}, "dtype of a model must be a known one; got 'half'"),
        ({"device_map": "meta"}, "device_map of a model must be a device, or a word"),
        ({"device_map": {"": -1}}, "the device of '' in device_map must be one; got -1"),
        ({"device_map": {"": True}}, "must be one; got True"),
        ({"device_map": {"model.vision_towers": "cpu"}}, "Did you mean 'model.vision_tower'?"),
        ({"device_map": {"x": "cpu"}}, "be a module of the model; got 'x'. They begin with model, model."),
        ({"device_map": {"model": "cpu"}}, "gives none to lm_head.weight"),
        ({"device_map": {"": "cuda:99"}}, "each device of device_map must be present; got 'cuda:99'"),
        ({"device_map": 99}, "each device of device_map must be present; got '99'"),
    ],
)
def test_bad_words_in_python_are_refused_before_weights_are_read(values, told, monkeypatch):
    from transformers import AutoModelForImageTextToText

    monkeypatch.setattr(AutoModelForImageTextToText, "from_pretrained", lambda *_, **__: pytest.fail("it loads"))
    with pytest.raises(TokentrimError) as error:
        load_model("testbed-plain", **values)
    assert told in str(error.value)


def test_a_map_of_modules_places_them():
    names = ("model.vision_tower", "model.multi_modal_projector", "model.language_model", "lm_head")
    model = load_model("testbed-plain", device_map=dict.fromkeys(names, "cpu"), attn_implementation="eager").model
    assert model.device.type == "cpu"
    assert model.config.get_text_config()._attn_implementation == "eager"
    spread = load_model("testbed-plain", device_map=torch.device("cpu")).model
    assert spread.device.type == "cpu"


def test_a_placement_is_checked_like_any_mapping():
    with pytest.raises(ConfigError, match="each key of a model must be a known one; got 'dtyp'. Did you mean 'dtype'"):
        check(LoadOptions, {"dtyp": "float16"}, "a model", Where())


# ---------------------------------------------------------------------- quantised weights


def quantised(folder, settings):
    """The shipped model, whose config says that its weights are quantised."""
    shutil.copytree(resolve_folder("testbed-plain"), folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "quantization_config": settings}))
    return folder


@pytest.mark.parametrize(
    ("settings", "package"),
    [({"quant_method": "torchao"}, "torchao"), ({"load_in_8bit": True}, "bitsandbytes"),
     ({"quant_method": "awq", "bits": 4}, "gptqmodel")],
)  # fmt: skip
def test_a_missing_package_is_named_by_loading_and_by_the_doctor(settings, package, tmp_path, monkeypatch, command):
    monkeypatch.setattr(weights, "find_spec", lambda name: None)
    folder = quantised(tmp_path / "own", settings)
    with pytest.raises(UnsupportedError, match=rf"find the package that reads .*Run pip install {package}"):
        load_model(folder)
    result = command("doctor", "--model", folder)
    assert result.exit_code == 1
    assert f"problem: weights: the quantised weights in {folder}" in result.stdout


def test_an_unknown_way_is_refused_instead_of_read_as_if_plain(tmp_path):
    folder = quantised(tmp_path / "own", {"quant_method": "torch-ao"})
    with pytest.raises(ConfigError, match=r"quant_method .*got 'torch-ao'. Did you mean 'torchao'"):
        load_model(folder)


def test_what_has_no_package_of_its_own_is_left_to_transformers(tmp_path):
    config = SimpleNamespace(quantization_config={"quant_method": "fp8"}, get_text_config=lambda decoder: None)
    require_reader(config, tmp_path)
