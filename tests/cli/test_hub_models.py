"""Commands on models of the hub, and on folders as the hub has them."""

import json
import shutil
import sys
from importlib.util import find_spec

import pytest
from huggingface_hub import constants

from tests.hub_cache import fill
from tokentrim.errors import UnsupportedError
from tokentrim.loading import load_model, load_processor, models, resolve_folder

ID = "someone/tiny-llava"


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def test_commands_take_ids_of_the_hub(cli, cache, picture):
    fill(cache, ID, "testbed-plain")
    found = cli("doctor", "--model", ID, "--json").data["model"]
    assert found["served"]
    assert {"name": "processor", "ok": True, "result": "LlavaProcessor", "takes": []} in found["checks"]
    assert cli("plan", "--model", f"{ID}@main", "--strategy", "st3", "--json").data["model"] == ID
    run = cli("run", "--model", ID, "--image", picture, "--prompt", "list all ?", "--strategy", "fastv", "--json").data
    assert run["model"] == ID
    refused = cli("run", "--model", "someone/other", "--image", picture, "--prompt", "a", "--strategy", "fastv")
    assert refused.exit_code == 2
    assert "hf download someone/other" in refused.stderr


@pytest.fixture
def published(tmp_path):
    """The shipped Qwen2.5-VL with the files of a published one, whose processor takes videos, too."""
    folder = tmp_path / "published"
    shutil.copytree(resolve_folder("testbed-qwen2.5-vl"), folder)
    settings = json.loads((folder / "processor_config.json").read_text())["image_processor"]
    (folder / "processor_config.json").unlink()
    settings["processor_class"] = "Qwen2_5_VLProcessor"
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    return folder


def test_a_processor_with_torchvision(cli, published):
    pytest.importorskip("torchvision")
    assert load_model(published).processor.video_processor is not None
    assert cli("doctor", "--model", published).exit_code == 0


@pytest.mark.skipif(find_spec("torchvision") is not None, reason="torchvision is there")
def test_a_processor_that_wants_torchvision_is_refused_with_the_extra_and_found_by_the_doctor(cli, published):
    with pytest.raises(UnsupportedError, match=r"Run pip install 'tokentrim-vlm\[qwen\]'; .* runtime after inst"):
        load_model(published)
    result = cli("doctor", "--model", published)
    assert result.exit_code == 1
    assert "processor" in result.stdout
    assert "problem: processor: the processor of the model in" in result.stdout
    assert "no problem found" not in result.stdout
    assert "after installation" in result.stderr


@pytest.mark.skipif(
    find_spec("torchvision") is not None and find_spec("num2words") is not None, reason="both are there"
)
def test_what_the_processor_of_smolvlm_wants_is_one_extra(tmp_path):
    folder = tmp_path / "published"
    shutil.copytree(resolve_folder("testbed-plain"), folder)
    (folder / "processor_config.json").write_text('{"processor_class": "SmolVLMProcessor"}')
    (folder / "preprocessor_config.json").write_text('{"image_processor_type": "SmolVLMImageProcessor"}')
    with pytest.raises(UnsupportedError, match=r"Run pip install 'tokentrim-vlm\[smolvlm\]'; "):
        load_processor(folder)


def test_a_torchvision_of_another_torch_is_named_where_it_breaks_an_import(cli, picture, tmp_path, monkeypatch):
    (tmp_path / "torchvision.py").write_text("raise RuntimeError('operator torchvision::nms does not exist')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "torchvision", raising=False)
    monkeypatch.setattr(models, "version", lambda name: "0.1")

    def broken(*_, **__):
        raise ModuleNotFoundError("Could not import module 'AutoProcessor'")

    monkeypatch.setattr("tokentrim.loading.load_model", broken)
    for arguments in (("doctor",), ("run", "--image", picture, "--prompt", "a", "--strategy", "fastv")):
        result = cli(*arguments)
        assert result.exit_code == 2
        assert "be built for the torch that is here; got 'torchvision 0.1 beside torch 2." in result.stderr
        assert "torchvision::nms does not exist" in result.stderr
