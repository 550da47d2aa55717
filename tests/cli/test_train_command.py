"""``tokentrim train``, and weights that the command line refuses."""

import json

import pytest

from tokentrim.contracts.trained.weights import read_header

SMALL = ("--model", "testbed-plain", "--task", "where", "--steps", 2, "--batch-size", 2)


def test_training_writes_a_file_and_says_how_to_run_it(cli, tmp_path):
    out = tmp_path / "one.safetensors"
    result = cli(
        "train", "{name: quecc, tokens: 1}", "--out", out, *SMALL, "--set", "warm_up=0", "--lr", "0.002", "--json"
    )
    assert result.exit_code == 0, result.stderr
    strategy = result.data["strategy"]
    assert (strategy["name"], strategy["weights"], strategy["tokens"]) == ("quecc", str(out), 1)
    options = read_header(out).provenance["options"]
    assert (options["learning_rate"], options["warm_up"], options["steps"]) == (0.002, 0, 2)
    again = cli("train", "{name: quecc, tokens: 1}", "--out", out, *SMALL, "--set", "warm_up=0", "--lr", "0.002")
    assert again.exit_code == 0
    assert "is finished already" in again.stdout
    assert "run it with" in again.stdout


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (("fastv",), "dyvte, quecc, without a budget"),
        (("quecc", "--set", "nonsense"), "--set must be KEY=VALUE"),
        (("quecc", "--set", "wide=3"), "wide"),
        (("dyvte", "--set", "agreement=2"), "agreement"),
        (("quecc", "--model", "nowhere"), "nowhere"),
    ],
)
def test_bad_input(cli, tmp_path, arguments, part):
    result = cli("train", *arguments, "--out", tmp_path / "w.safetensors")
    assert result.exit_code == 2, result.stdout
    assert part in result.stderr
    assert "Traceback" not in result.stderr


def test_weights_that_are_missing_damaged_or_of_another_model(cli, picture, tmp_path):
    ask = ("run", "-i", picture, "-p", "count all ?", "--model", "testbed-plain")
    none = cli(*ask, "-s", "dyvte")
    assert none.exit_code == 2
    assert "tokentrim train dyvte" in none.stderr
    missing = cli(*ask, "-s", f"{{name: dyvte, weights: {tmp_path / 'none.safetensors'}}}")
    assert missing.exit_code == 2
    assert "must be there" in missing.stderr
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(b"\x10\x00\x00\x00\x00\x00\x00\x00{}")
    for text in (f"{{name: dyvte, weights: {broken}}}", json.dumps({"name": "quecc", "weights": str(broken)})):
        result = cli(*ask, "-s", text)
        assert result.exit_code == 2
        assert "be readable safetensors" in result.stderr
