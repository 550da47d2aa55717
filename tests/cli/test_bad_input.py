"""Bad input: exit code 2, one paragraph on stderr that says what to do, nothing on stdout."""

import json
import struct

import pytest
from PIL import Image

PLAIN = ("--model", "testbed-plain")


def refused(result, *parts):
    assert result.exit_code == 2, (result.stdout, result.stderr)
    assert result.stdout == ""
    assert "Traceback" not in result.stderr
    for part in parts:
        assert part in result.stderr
    return result.stderr


def test_an_unknown_strategy_names_the_nearest(cli, picture):
    refused(cli("run", "-i", picture, "-p", "x", "-s", "fastvv", *PLAIN), "'fastvv'", "Did you mean 'fastv'?")


def test_a_video_for_a_model_that_takes_none(cli, tmp_path):
    Image.new("RGB", (80, 80)).save(tmp_path / "0.gif")
    called = cli("explain", "--video", tmp_path / "0.gif", *PLAIN, "--out", tmp_path / "out")
    assert called.exit_code == 2
    assert "must take videos, which the question is about; got" in called.stderr


def test_a_misspelt_key_names_file_line_and_the_nearest(cli, picture, tmp_path):
    file = tmp_path / "s.yaml"
    file.write_text("strategy:\n  name: fastv\n  keep_ration: 0.5\n")
    refused(cli("run", "-i", picture, "-p", "x", "-c", file, *PLAIN), "s.yaml:3", "keep_ration", "'keep_ratio'")
    refused(cli("validate", file), "s.yaml:3", "'keep_ratio'")


def test_a_ratio_above_one(cli, picture):
    strategy = "{name: fastv, keep_ratio: 1.7}"
    refused(cli("run", "-i", picture, "-p", "x", "-s", strategy, *PLAIN), "keep_ratio", "[0, 1]", "1.7")
    refused(cli("plan", "-s", strategy, *PLAIN), "1.7")


def test_a_strategy_that_does_not_fit_the_model(cli, picture):
    refused(cli("run", "-i", picture, "-p", "x", "-s", "{name: fastv, k: 77}", *PLAIN), "k of strategy 'fastv'", "77")


def test_a_broken_and_a_missing_image(cli, tmp_path):
    broken, unknown = tmp_path / "broken.png", tmp_path / "unknown.dds"
    broken.write_bytes(b"\x89PNG no picture")
    numbers = (124, 0x1007, 4, 4, 16, 0, 0, *(0,) * 11, 32, *(0,) * 7, 0x1000, *(0,) * 4)
    unknown.write_bytes(b"DDS " + struct.pack("<31I", *numbers) + bytes(64))
    for file in (broken, unknown):
        refused(cli("run", "-i", file, "-p", "x", "-s", "fastv", *PLAIN), "the image must be readable", file.name)
    refused(cli("run", "-i", tmp_path / "none.png", "-p", "x", "-s", "fastv", *PLAIN), "existing file")


@pytest.mark.parametrize(
    ("content", "part"),
    [
        (None, "hold a config.json"),
        ("{", "be readable JSON"),
        ("{}", "name a model_type"),
        (json.dumps({"model_type": "bert"}), "one that an adapter recognises"),
    ],
)
def test_a_folder_without_a_model_that_we_know(cli, picture, tmp_path, content, part):
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    refused(cli("run", "-i", picture, "-p", "x", "-s", "fastv", "--model", tmp_path), part)


def test_an_unsupported_family_lists_those_that_are_supported(cli, picture, tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "lava"}')
    refused(cli("doctor", "--model", tmp_path), "'lava'", "Did you mean 'llava'?")


def test_broken_weights(cli, picture, tmp_path):
    from tokentrim.loading import resolve_folder

    for file in resolve_folder("testbed-plain").iterdir():
        content = b"no tensors" if file.suffix == ".safetensors" else file.read_bytes()
        (tmp_path / file.name).write_bytes(content)
    refused(cli("run", "-i", picture, "-p", "x", "-s", "fastv", "--model", tmp_path), "must load", str(tmp_path))


def test_an_unknown_model(cli, picture):
    refused(cli("run", "-i", picture, "-p", "x", "-s", "fastv", "--model", "tesbed"), "Did you mean 'testbed'?")


def test_the_oracle_needs_to_be_told(cli, picture):
    refused(cli("run", "-i", picture, "-p", "x", "-s", "oracle", *PLAIN), "evidence")


def test_an_output_that_cannot_be_written(cli, picture, tmp_path):
    (tmp_path / "file").write_text("")
    refused(cli("compare", "--out", tmp_path / "file" / "run"), "results folder", "be writable")
    refused(
        cli("run", "-i", picture, "-p", "x", "-s", "fastv", *PLAIN, "--overlay", tmp_path / "none" / "o.png"),
        "--overlay",
    )


def test_options_that_contradict_each_other(cli, picture, tmp_path):
    refused(cli("run", "-i", picture, "-p", "x", *PLAIN), "either --strategy or --config")
    refused(cli("plan"), "--strategy")
    refused(cli("plan", "-s", "st3", "--image-size", "big", *PLAIN), "HEIGHTxWIDTH")
    refused(cli("ls", "strategie"), "Did you mean 'strategy'?")
    refused(cli("compare"), "--out")


def test_results_of_another_configuration(cli, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"config_hash": "0", "config": {"samples": 1}}))
    error = refused(cli("compare", "--out", tmp_path), "of this configuration", "samples", "Choose another --out")
    assert "another one" in error
    assert [path.name for path in tmp_path.glob("*.json*")] == ["config.json"]
