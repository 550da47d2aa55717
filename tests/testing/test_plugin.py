"""The pytest plugin: options that add checks, a fixture, and no torch at import."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path

import pytest

import tokentrim
from tests import warm
from tests.test_import_cost import loaded_after

# An installed tokentrim brings the plugin along; a checkout that nobody installed names it.
_INSTALLED = any(point.name == "tokentrim" for point in entry_points(group="pytest11"))
PLUGIN = () if _INSTALLED else ("-p", "tokentrim.testing.pytest_plugin")


def run(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", *PLUGIN, *arguments]
    return warm.run(command, cwd=cwd)


def test_the_plugin_is_registered_and_light() -> None:
    assert loaded_after("import pytest, tokentrim.testing.pytest_plugin") == []
    pyproject = (Path(tokentrim.__file__).parent.parent / "pyproject.toml").read_text(encoding="utf-8")
    assert '[project.entry-points.pytest11]\ntokentrim = "tokentrim.testing.pytest_plugin"' in pyproject


@pytest.mark.slow
def test_options_and_fixture(tmp_path: Path) -> None:
    (tmp_path / "test_own.py").write_text(
        "def test_own(tokentrim_small):\n    assert tokentrim_small.prompt(0)['input_ids'].shape[0] == 1\n", "utf-8"
    )
    done = run("--tokentrim-strategy", "{name: uniform, boundary: 9}", "-k", "own or runs or frozen", cwd=tmp_path)
    assert "1 failed, 3 passed, 1 skipped" in done.stdout, done.stdout + done.stderr
    assert "tokentrim[uniform(boundary=9)-runs]" in done.stdout
    assert "runs: a small model of 6 layers" in done.stdout
    assert "Traceback" not in done.stdout


def test_what_is_no_strategy_is_a_usage_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """In this process, in which torch is there already."""
    options = ("-q", "-p", "no:cacheprovider", "-p", "no:xdist", *PLUGIN, "--tokentrim-strategy", "unifrom")
    assert pytest.main([*options, str(tmp_path)]) == pytest.ExitCode.USAGE_ERROR
    assert "Did you mean 'uniform'" in capsys.readouterr().err


def test_without_pytest(capsys: pytest.CaptureFixture[str]) -> None:
    from tokentrim.testing.__main__ import main

    assert main(["unifrom"]) == 2
    assert "Did you mean 'uniform'" in capsys.readouterr().err
    assert main(["{name: uniform, boundary: 9}", "--family", "llava"]) == 1
    printed = capsys.readouterr().out
    assert printed.startswith("strategy 'uniform(boundary=9)'\nabilities_are_declared")
    assert " failed " in printed
