"""Suites of benches: what they run, what they keep, and what becomes of failures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from tokentrim.bench import suite
from tokentrim.bench.suite import PAGE, load_suite, run_suite
from tokentrim.cli import app
from tokentrim.errors import TokentrimError

SHIPPED = sorted((Path(__file__).parents[2] / "docs" / "examples" / "bench").glob("*.yaml"))
TINY = """
settings:
  - title: Small
    geometry: tiny
    images: [1, 2]
    new_tokens: 2
    prompt_tokens: 6
    repeats: 1
    memory: false
    device: cpu
    strategies: [random]
"""


@pytest.mark.parametrize("file", SHIPPED, ids=lambda file: file.stem)
def test_shipped_suites_are_valid_and_say_how_to_run_them(file: Path) -> None:
    settings = load_suite(file).settings
    assert all(setting.options() for setting in settings)
    assert file.read_text().startswith(f"# tokentrim bench --suite docs/examples/bench/{file.name} --out")


def test_a_suite_runs_once_and_goes_on_where_it_stopped(tmp_path: Path, monkeypatch: Any) -> None:
    from tokentrim.bench import runner

    ran: list[int] = []
    real = runner.run

    def run(options: Any) -> Any:
        ran.append(options.images)
        if options.images == 2 and len(ran) == 2:
            raise MemoryError("too large\nwith details")
        return real(options)

    monkeypatch.setattr(runner, "run", run)
    first = run_suite(TINY, tmp_path)
    assert [entry.failure for entry in first] == ["", "MemoryError: too large"]
    text = (tmp_path / PAGE).read_text()
    assert "failed: MemoryError: too large" in text
    assert "| 16 | 1 | 2 | random(" in text or "| 16 | 1 | 2 | random |" in text
    assert len(list(tmp_path.glob("*.failed.json"))) == 1
    second = run_suite(TINY, tmp_path)
    assert ran == [1, 2, 2]
    assert all(entry.result is not None for entry in second)
    assert not list(tmp_path.glob("*.failed.json"))
    assert "| 32 | 1 | 2 | none |" in (tmp_path / PAGE).read_text()
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("settings: []", "settings"),
        ("a: 1", "hold a list 'settings'"),
        ("settings: [{geometry: tinny}]", "tiny"),
        ("settings: [{batchs: 2}]", "batch"),
        ("settings: [{batch: 0}]", "be at least 1"),
        ("settings: [{strategies: [fastw]}]", "fastv"),
    ],
)
def test_a_bad_suite_is_refused_before_anything_runs(text: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(TokentrimError, match=said):
        run_suite(text, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_command_line_wants_both(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["bench", "--out", str(tmp_path)])
    assert result.exit_code == 2
    assert "be given together" in result.output


def test_a_setting_is_every_combination() -> None:
    setting = suite.Setting(geometry="tiny", batch=(1, 2), new_tokens=(2, 3))
    assert [(one.batch, one.new_tokens) for one in setting.options()] == [(1, 2), (1, 3), (2, 2), (2, 3)]
