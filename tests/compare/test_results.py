"""The results folder: whole files or none, one configuration, and no writing where nothing can be written."""

import json

import pytest

from tokentrim.compare.config import load_compare
from tokentrim.compare.folder import ResultsFolder
from tokentrim.errors import ResultsError
from tokentrim.runs.files import write_atomic, write_json, write_lines

CONFIG = {"tasks": ["where"], "strategies": ["fastv"]}


def test_a_folder_is_made_and_opened_again(tmp_path):
    folder = ResultsFolder(tmp_path / "deep" / "run")
    folder.open(load_compare(CONFIG), {"command": "x"})
    folder.open(load_compare(CONFIG), {"command": "y"})
    written = json.loads((tmp_path / "deep" / "run" / "config.json").read_text())
    assert written["command"] == "x"
    assert written["config_hash"] == load_compare(CONFIG).hash


def test_results_of_another_configuration_are_refused(tmp_path):
    ResultsFolder(tmp_path).open(load_compare(CONFIG), {})
    before = (tmp_path / "config.json").read_text()
    with pytest.raises(ResultsError, match=r"differs in: samples.*Choose another --out"):
        ResultsFolder(tmp_path).open(load_compare({**CONFIG, "samples": 7}), {})
    assert (tmp_path / "config.json").read_text() == before


def test_a_folder_that_somebody_else_filled_is_refused(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ResultsError, match="be what tokentrim wrote there"):
        ResultsFolder(tmp_path).open(load_compare(CONFIG), {})


def test_a_place_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ResultsError, match="be writable"):
        ResultsFolder(tmp_path / "file" / "run").open(load_compare(CONFIG), {})


def test_a_writer_that_breaks_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, {"a": 1})

    def broken(part):
        part.write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_atomic(path, broken)
    assert json.loads(path.read_text()) == {"a": 1}
    assert [file.name for file in tmp_path.iterdir()] == ["a.json"]


def test_numbers_that_json_does_not_know_are_never_written(tmp_path):
    with pytest.raises(ResultsError, match="JSON"):
        write_lines(tmp_path / "a.jsonl", [{"a": float("nan")}])
    assert not list(tmp_path.iterdir())
