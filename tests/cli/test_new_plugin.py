"""``new-plugin`` writes whole packages that work as they are, of every kind, and nothing else."""

import ast
import os
import re
import sys
from pathlib import Path

import pytest

from tests import warm
from tokentrim.cli.scaffold import KINDS, TASK, NewPlugin
from tokentrim.config.yaml_reader import load_yaml
from tokentrim.errors import DataError

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "docs/examples/tokentrim-example-plugin"


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_it_writes_what_it_says(cli, here):
    about = cli("new-plugin", "my-pruner", "--json").data
    assert about["folder"] == "my-pruner"
    found = sorted(
        str(path.relative_to(here / "my-pruner")) for path in (here / "my-pruner").rglob("*") if path.is_file()
    )
    assert sorted(about["files"]) == found
    assert {"pyproject.toml", "README.md", "my_pruner/strategy.py", "configs/my-pruner.yaml"} <= set(found)
    assert [path.name for path in here.iterdir()] == ["my-pruner"]  # nothing beside it is left over
    readme = (here / "my-pruner/README.md").read_text()
    assert all(command in readme for command in about["commands"][1:] if command != "pytest")
    assert "pip install" in cli("new-plugin", "another").stdout


def test_a_task_comes_without_a_strategy(cli, here):
    about = cli("new-plugin", "my-questions", "--kind", "task", "--json").data
    assert {"my_questions/task.py", "configs/compare.yaml", "tests/test_my_questions.py"} <= set(about["files"])
    readme = (here / "my-questions/README.md").read_text()
    assert all(command in readme for command in about["commands"][1:] if command != "pytest")


@pytest.mark.parametrize("kind", [*KINDS, TASK])
def test_what_it_writes_is_well_formed(kind):
    files = NewPlugin("my-plugin", "my-method", kind).files()
    for path, content in files.items():
        text = content.decode() if path.suffix != ".png" else ""
        assert "$" not in re.sub(r"\$schema=", "", text), path
        assert all(len(line) <= 120 for line in text.splitlines()), path
        if path.suffix == ".py":
            ast.parse(text)
        if path.suffix == ".yaml":
            assert re.search(r"^# tokentrim (run|compare) ", text)
            assert re.search(r"^# yaml-language-server: \$schema=", text, re.MULTILINE)
            load_yaml(text)
    # The strategy itself fits on a screen: a class of twelve lines and its documentation.
    strategy = ast.parse(files[next(path for path in files if path.name in ("strategy.py", "task.py"))])
    (found,) = (node for node in strategy.body if isinstance(node, ast.ClassDef))
    assert found.name == "MyMethod"
    if kind == "scorer":
        assert sum(1 for node in ast.walk(found) if isinstance(node, ast.stmt)) <= 12


def test_the_example_is_what_it_writes():
    files = NewPlugin("tokentrim-example-plugin", "feature-norm").files()
    for path, content in files.items():
        assert (EXAMPLE / path).is_file(), path
        if path.suffix != ".png":  # its bytes are the compressor's
            assert (EXAMPLE / path).read_bytes() == content, f"{path}: run: python tests/test_docs.py"


REFUSED = [
    (("My_Pruner",), "consist of lower-case words", "Write my-pruner"),
    (("2fast",), "begin with a letter", "Write fast"),
    (("a--b",), "joined by single hyphens", "Write a-b"),
    (("../evil",), "consist of lower-case words", "Write evil"),
    (("",), "consist of lower-case words", "Such as my-pruner"),
    (("fastv",), "the name of its strategy must be free; got 'fastv'", "'builtin-strategies' of tokentrim"),
    (("mine", "--strategy", "st3"), "got 'st3'", "choose another one with --strategy"),
    (("torch",), "the name of a plugin must be free", "is installed"),
    (("json",), "the import name of a plugin must be free", "json/__init__.py"),
    (("class",), "be no word of Python", "another name"),
    (("where", "--kind", "task"), "the name of its task must be free; got 'where'", "choose another one"),
    (("mine", "--kind", "scorrer"), "kind of plugin", "Did you mean 'scorer'"),
]


@pytest.mark.parametrize(("arguments", "problem", "advice"), REFUSED, ids=[" ".join(case[0]) for case in REFUSED])
def test_names_that_cannot_be_are_refused(cli, here, arguments, problem, advice):
    result = cli("new-plugin", *arguments)
    assert result.exit_code == 2
    assert problem in result.stderr
    assert advice.lower() in result.stderr.lower()
    assert not list(here.iterdir())


def test_nothing_is_overwritten(cli, here):
    (here / "full").mkdir()
    (here / "full/notes.txt").write_text("mine")
    for target in ("full", "full/notes.txt"):
        result = cli("new-plugin", "my-pruner", "--out", target)
        assert result.exit_code == 2
        assert "must be new or empty" in result.stderr
    assert (here / "full/notes.txt").read_text() == "mine"
    (here / "empty").mkdir()
    assert cli("new-plugin", "my-pruner", "--out", "empty").exit_code == 0
    assert (here / "empty/pyproject.toml").is_file()
    assert sorted(path.name for path in here.iterdir()) == ["empty", "full"]


def test_a_failure_leaves_nothing(here, monkeypatch):
    def fail(self, content):
        raise OSError("no space left")

    monkeypatch.setattr(Path, "write_bytes", fail)
    with pytest.raises(DataError, match="must be writable.*[Nn]o space left"):
        NewPlugin("my-pruner", "my-pruner").write(here / "deep/my-pruner")
    assert not list(here.rglob("*my-pruner*"))


@pytest.mark.slow
def test_its_packages_pass_their_tests_beside_each_other(here):
    """Each kind as pip would install it. The contract suite, which takes minutes, is run by .ci/run."""
    site = here / "site"
    tests = []
    for kind in (*KINDS, TASK):
        plugin = NewPlugin(f"my-{kind}", f"my-{kind}", kind)
        plugin.write(here / plugin.name)
        tests.append(str(here / plugin.name / "tests"))
        info = site / f"{plugin.package}-0.1.0.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {plugin.name}\nVersion: 0.1.0\n")
        (info / "entry_points.txt").write_text(f"[tokentrim]\n{plugin.name} = {plugin.package}\n")
        (site / plugin.package).symlink_to(here / plugin.name / plugin.package)
    environment = {**os.environ, "TOKENTRIM_PLUGINS": ",".join(f"my-{kind}" for kind in (*KINDS, TASK))}
    environment["PYTHONPATH"] = os.pathsep.join(
        [str(site), str(ROOT), str(ROOT / "strategies"), str(ROOT / "adapters")]
    )
    settings = ["-c", str(here / "my-scorer/pyproject.toml"), "-k", "not test_contract", "-q", "-p", "no:cacheprovider"]
    settings += ["-W", "ignore:Module already imported"]  # pytest's plugins that transformers brings along
    done = warm.run([sys.executable, "-m", "pytest", *settings, *tests], env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "19 passed" in done.stdout
