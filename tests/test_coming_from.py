"""What docs/coming-from.md says is run: its Python by tests/test_docs_code.py, all else here, with fewer questions."""

import json
import shlex

import pytest
from typer.testing import CliRunner

from tests.test_docs_code import DOCS, blocks, shipped_model
from tokentrim.cli import app
from tokentrim.testbed.tasks import TASKS

PAGE = DOCS / "coming-from.md"


def lines():
    return [line for block in blocks(PAGE, "bash") for line in block.splitlines()]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    TASKS["where"].samples("test", 1)[0].images[0].save("photo.jpg")
    (tmp_path / "my.yaml").write_text(blocks(PAGE, "yaml")[0].replace("testbed", shipped_model()))
    return tmp_path


def test_a_table_of_another_kit_becomes_questions_that_a_comparison_asks(folder):
    code = next(code for code in blocks(PAGE, "python") if code.startswith("import base64"))
    exec(compile(code, str(PAGE), "exec"), {"scene": TASKS["list-all"].samples("test", 1)[0]})
    question = json.loads((folder / "own.jsonl").read_text())
    assert question["choices"] == ["a ring", "a zebra"]
    assert (question["answer"], (folder / question["image"]).is_file()) == ("A", True)
    command = next(line for line in lines() if line.startswith("tokentrim compare"))
    words = shlex.split(command, comments=True)[1:]
    done = CliRunner().invoke(app, [*words, "--no-timing", "--format", "md"])
    assert done.exit_code == 0, done.stderr
    assert (folder / "runs/own/report.md").is_file()


@pytest.mark.parametrize("line", [line for line in lines() if not line.startswith("tokentrim compare")])
def test_every_other_line_runs(line, folder):
    words = [shipped_model() if word == "testbed" else word for word in shlex.split(line, comments=True)[1:]]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.stderr
