"""Which executor a run gets: from the command line, the configuration or the caller, with its options checked."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from tokentrim.cli import app
from tokentrim.compare import load_compare, runner
from tokentrim.errors import ConfigError, UnknownNameError, UnsupportedError
from tokentrim.executors import choose, executor_from, parse_options
from tokentrim.executors.local import LocalExecutor
from tokentrim.plugins.loader import registry

BARE = {"tasks": ["where"], "strategies": ["fastv"]}


def test_the_default_is_this_process():
    chosen = choose(None, None)
    assert (chosen.spec(), chosen.in_process) == ({"name": "local"}, True)


@pytest.mark.parametrize("name", registry("executor").names())
def test_every_executor_is_built_from_its_name_and_described_again(name):
    executor = executor_from(name)
    assert executor_from(executor.spec()) == executor
    assert registry("executor").entry(name).tags["summary"]


def test_an_unknown_name_is_answered_with_the_nearest():
    with pytest.raises(UnknownNameError, match="Did you mean 'ray'"):
        executor_from("rai")


@pytest.mark.parametrize(
    ("given", "configured", "expected"),
    [
        ("local", None, {"name": "local"}),
        (None, {"name": "local", "workers": 2}, {"name": "local", "workers": 2}),
        ({"max_retries": 0}, {"name": "local", "workers": 2}, {"name": "local", "workers": 2, "max_retries": 0}),
        ({"workers": 3}, None, {"name": "local", "workers": 3}),
        ("ray", {"name": "local", "workers": 2}, {"name": "ray"}),
        ({"name": "ray", "num_cpus": 2}, {"name": "ray", "num_gpus": 1}, {"name": "ray", "num_cpus": 2, "num_gpus": 1}),
    ],
)
def test_what_the_caller_says_goes_before_the_configuration(given, configured, expected):
    assert choose(given, configured and executor_from(configured)).spec() == {**expected} | {
        key: float(value) for key, value in expected.items() if key.startswith("num_")
    }


def test_options_are_read_as_yaml():
    assert parse_options(None, []) is None
    assert parse_options("ray", ["num_gpus=0.5", "address=null"]) == {"name": "ray", "num_gpus": 0.5, "address": None}
    assert parse_options(None, ["workers=2"]) == {"workers": 2}


@pytest.mark.parametrize("option", ["workers", "=2", "a b=1", "name=ray"])
def test_an_option_of_another_form_is_refused(option):
    with pytest.raises(ConfigError, match="read KEY=VALUE"):
        parse_options(None, [option])


def test_the_configuration_may_name_one_and_stays_the_same():
    plain, far = load_compare(BARE), load_compare({**BARE, "executor": {"name": "ray", "num_gpus": 1}})
    assert far.executor.spec() == {"name": "ray", "num_gpus": 1.0}
    assert far.hash == plain.hash
    assert "executor" not in far.to_dict()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("executor: rya", "c.yaml:3, executor: .*Did you mean 'ray'"),
        ("executor: {name: local, worker: 2}", "c.yaml:3, executor.worker: .*Did you mean 'workers'"),
        ("executor: {name: local, workers: 0}", "c.yaml:3, executor.workers: .*be at least 1"),
        ("executor: [local]", "c.yaml:3, executor: .*be a name or a mapping"),
        ("executor: {workers: 2}", "c.yaml:3, executor: .*have a name"),
    ],
)
def test_mistakes_in_a_file_are_found_at_their_place(text, message, tmp_path):
    file = tmp_path / "c.yaml"
    file.write_text(f"tasks: [where]\nstrategies: [fastv]\n{text}\n", encoding="utf-8")
    with pytest.raises((ConfigError, UnknownNameError), match=message):
        load_compare(file)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--executor", "rai"], "Did you mean 'ray'"),
        (["--executor-option", "worker=2"], "Did you mean 'workers'"),
        (["--executor-option", "workers"], "KEY=VALUE"),
    ],
)
def test_bad_options_on_the_command_line_end_it_with_2(options, message, tmp_path):
    out = tmp_path / "out"
    done = CliRunner().invoke(app, ["compare", "--out", str(out), *options])
    assert done.exit_code == 2
    assert message in done.stderr
    assert not out.exists()


def test_a_missing_library_is_named_before_anything_is_written(monkeypatch, tmp_path):
    monkeypatch.setitem(__import__("sys").modules, "ray", None)
    with pytest.raises(UnsupportedError, match=r"pip install 'tokentrim-vlm\[ray\]'"):
        runner.run(BARE, tmp_path / "out", executor="ray")
    assert not (tmp_path / "out").exists()


def test_torchrun_and_an_executor_do_not_share_the_work(monkeypatch, tmp_path):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", "0")
    with pytest.raises(UnsupportedError, match="run its cells in torchrun's own processes"):
        runner.run(BARE, tmp_path / "out", executor=LocalExecutor(workers=2))
    assert not (tmp_path / "out").exists()


def test_torchrun_takes_the_place_of_processes_that_a_configuration_asks_for(monkeypatch):
    assert not runner.planned(None).executor.in_process
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", "0")
    assert runner.planned(None).executor.in_process


def test_the_documented_executor_is_the_one_that_is_tested():
    root = Path(__file__).parents[2]
    source = Path(__file__).with_name("shaky.py").read_text(encoding="utf-8")
    body = source[source.index("    def run(self, jobs, say):") : source.index("\n\n@hookimpl")]
    assert body.strip() in (root / "docs/executors.md").read_text(encoding="utf-8")
