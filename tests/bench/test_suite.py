"""Suites of benches: what they run, what they keep, and what becomes of failures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from tests.bench.small import counterpart
from tokentrim.bench import suite
from tokentrim.bench.suite import PAGE, load_suite, run_suite
from tokentrim.bench.throughput import ThroughputResult
from tokentrim.cli import app
from tokentrim.errors import ResultsError, TokentrimError

THROUGHPUT = """
settings:
  - title: Rows
    geometry: [tiny, tiny-next]
    throughput: 0.001
    new_tokens: 3
    prompt_tokens: 6
    repeats: 1
    device: cpu
    strategies: [random]
"""
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

    def run(options: Any, progress: Any = None) -> Any:
        ran.append(options.images)
        if options.images == 2 and len(ran) == 2:
            raise MemoryError("too large\nwith details")
        return real(options, progress)

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
        ("settings: [{attn_implementation: spda}]", "settings.0.*Did you mean 'sdpa'"),
        ("settings: [{device_map: auto}]", "settings.0.*device_map of a bench must be left out"),
        ("settings: [{device_map: atuo}]", "Did you mean 'auto'"),
        ("settings: [{throughput: 0}]", "throughput"),
        ("settings: [{throughput: 1, batch: 2}]", "batch: batch of a setting with throughput must be left out; got 2"),
        ("settings: [{throughput: 1, memory: false}]", "memory of a setting with throughput must be left out"),
    ],
)
def test_a_bad_suite_is_refused_before_anything_runs(text: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(TokentrimError, match=said):
        run_suite(text, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def small(text: str) -> Any:
    """A suite at the smallest size of its families: the first few of each list, on CPU, with little memory."""
    least: dict[str, Any] = {
        "batch": [2], "images": [1, 2], "new_tokens": [2], "compile": False, "device": "cpu", "dtype": "float32",
        "repeats": 1, "prompt_tokens": 6,
    }  # fmt: skip
    found: dict[str, Any] = yaml.safe_load(text)
    for setting in found["settings"]:
        named = setting["geometry"]
        setting["geometry"] = sorted({counterpart(one) for one in ([named] if isinstance(named, str) else named)})
        setting |= {key: least[key] for key in setting if key in least}
        setting |= {key: least[key] for key in ("repeats", "prompt_tokens")}
        setting.pop("layer_mean_ratio", None)  # few layers cannot reach a small one
        setting["strategies"] = setting["strategies"][:2]
        if "throughput" in setting:
            setting["throughput"] /= 2**16
            setting["strategies"] = setting["strategies"][:1]
        else:
            setting["memory"] = False
    return found


@pytest.mark.slow
def test_the_gpu_suite_runs_at_the_smallest_size(tmp_path: Path, monkeypatch: Any) -> None:
    from tokentrim.bench import limits, runner

    measure = runner.measure_limits
    monkeypatch.setattr(runner, "measure_limits", lambda *args, **more: measure(*args, **more, buffer_bytes=2**16))
    monkeypatch.setattr(limits, "_TRIES", 1)
    copy = small(next(file for file in SHIPPED if file.stem == "gpu").read_text())
    entries = run_suite(yaml.safe_dump(copy), tmp_path)
    assert [entry.failure for entry in entries if entry.result is None] == []
    assert {entry.job.options.geometry for entry in entries} == {
        one for setting in copy["settings"] for one in setting["geometry"]
    }
    text = (tmp_path / PAGE).read_text()
    for setting in copy["settings"]:
        assert f"## {setting['title']}: " in text


def test_a_throughput_setting_is_stored_and_shown(tmp_path: Path, monkeypatch: Any) -> None:
    from tokentrim.bench import throughput

    ran: list[str] = []
    real = throughput.run_throughput

    def run_throughput(options: Any, budget: int, progress: Any = None) -> Any:
        ran.append(options.geometry)
        if len(ran) == 2:
            raise MemoryError("too large")
        return real(options, budget, progress)

    monkeypatch.setattr(throughput, "run_throughput", run_throughput)
    first = run_suite(THROUGHPUT, tmp_path)
    assert [entry.failure for entry in first] == ["", "MemoryError: too large"]
    text = (tmp_path / PAGE).read_text()
    assert "| 1 images | 3 | failed: MemoryError: too large |  |  |  |  |" in text
    assert len(list(tmp_path.glob("*-throughput-0.001-*.failed.json"))) == 1
    second = run_suite(THROUGHPUT, tmp_path)
    third = run_suite(THROUGHPUT, tmp_path)
    assert ran == ["tiny", "tiny-next", "tiny-next"]
    assert [entry.result for entry in third] == [entry.result for entry in second]
    assert not list(tmp_path.glob("*.failed.json"))
    text = (tmp_path / PAGE).read_text()
    assert "## Rows: tiny-next, 0.001 GiB beyond the weights" in text
    tables = [line for line in text.splitlines() if line.startswith("| ") and "---" not in line]
    header = "| visual tokens | new | strategy | largest batch | peak, MiB | tokens per second | against untouched |"
    assert tables[0] == tables[3] == header
    labels = [line.split("|")[3].strip().partition("(")[0] for line in tables]
    assert labels == ["strategy", "untouched", "random"] * 2
    assert len({line.count("|") for line in tables}) == 1
    assert all(entry.job.command.endswith("--throughput 0.001") for entry in third)
    assert "of implied" not in text


def test_a_stored_throughput_bench_that_is_none_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "some.json"
    path.write_text("{}")
    with pytest.raises(ResultsError, match="be a throughput bench"):
        ThroughputResult.read(path)


@pytest.mark.parametrize("text", [TINY, THROUGHPUT])
def test_a_failed_line_is_as_wide_as_its_table(text: str) -> None:
    for setting in load_suite(text).settings:
        for job in setting.jobs():
            assert len(job.failed("why")) == len(job.columns)


def test_the_command_line_wants_both(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["bench", "--out", str(tmp_path)])
    assert result.exit_code == 2
    assert "be given together" in result.output


def test_a_setting_is_every_combination() -> None:
    setting = suite.Setting(geometry="tiny", batch=(1, 2), new_tokens=(2, 3))
    assert [(one.batch, one.new_tokens) for one in setting.options()] == [(1, 2), (1, 3), (2, 2), (2, 3)]
