"""A comparison said by options: what they mean, and the file that says the same."""

import json
from types import SimpleNamespace

import pytest

from tokentrim.compare.config import load_compare
from tokentrim.runs.specs import usual_tasks

ROW = {"image": "red.png", "question": "what ?", "answer": "red"}


@pytest.fixture
def asked(cli, monkeypatch, tmp_path):
    """Calls ``compare`` with its run left out; returns the result, and what would have been run."""
    seen = []

    def run(source, out, **more):
        seen.append(load_compare(source))
        return SimpleNamespace(failures=0, files={}, table=str, to_dict=dict)

    monkeypatch.setattr("tokentrim.compare.runner.run", run)
    monkeypatch.chdir(tmp_path)

    def call(*arguments):
        result = cli("compare", "--out", "out", *arguments)
        return result, seen.pop() if seen else None

    return call


def names(config):
    return [method.name for method in config.strategies]


def test_options_say_what_a_file_would(asked, picture):
    with open("mine.jsonl", "w") as file:
        file.write(json.dumps({**ROW, "image": str(picture)}))
    result, config = asked(
        "--model", "testbed,testbed-plain", "--strategies", "st3,{name: fastv, k: 3}", "-s", "downscale",
        "--budgets", "0.5,0.25", "--tasks", "mine.jsonl,{task: mine.jsonl, metric: anls, samples: 1}", "-t", "where",
        "--samples", 7, "--device", "cpu", "--dtype", "float32", "--no-timing",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert [model.model for model in config.models] == ["testbed", "testbed-plain"]
    assert {(model.device, model.dtype) for model in config.models} == {("cpu", "float32")}
    assert names(config) == ["st3", "fastv", "downscale"]
    assert config.strategies[1].spec()["k"] == 3
    assert config.budgets.values == (0.5, 0.25)
    assert [task.task for task in config.tasks] == ["mine.jsonl", "mine.jsonl@anls", "where"]
    assert (config.samples, config.timing) == (7, None)


def test_what_no_option_says(asked):
    _, config = asked("--samples", 3)
    assert (names(config), [task.task for task in config.tasks]) == (["st3", "fastv"], usual_tasks())
    assert asked()[1].hash == load_compare().hash


def test_the_saved_file_runs_the_same(asked, tmp_path):
    options = ("--strategy", "fastv", "--strategy", "{name: st3, horizon: 9}", "--task", "where", "--samples", 2)
    result, config = asked(*options, "--save-config", "mine.yaml")
    assert result.exit_code == 0, result.output
    assert load_compare("mine.yaml").hash == config.hash
    assert (tmp_path / "mine.yaml").read_text().startswith("# tokentrim compare mine.yaml --out out\n")
    assert asked("mine.yaml")[1].hash == config.hash
    # Going on with the same command is no overwriting.
    assert asked(*options, "--save-config", "mine.yaml")[0].exit_code == 0
    result, _ = asked(*options, "--budgets", "0.5", "--save-config", "mine.yaml")
    assert (result.exit_code, "Nothing is overwritten" in result.output) == (2, True)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("c.yaml", "--samples", 3), "by a file or by options; got 'c.yaml and --samples'"),
        (("c.yaml", "--save-config", "d.yaml"), "by a file or by options"),
        (("--budgets", "0.5,half"), "numbers with commas between; got 'half'"),
        (("--budgets", "2"), "shares in (0, 1]"),
        (("--samples", 0), "samples of the comparison must lie in [1, 100000]"),
        (("--tasks", "mien.jsonl"), "the file of questions must exist"),
        (("--tasks", "{task: where, metrik: f1}"), "Did you mean 'metric'"),
        (("--strategies", "fastw"), "Did you mean 'fastv'"),
        (("--dtype", "float17"), "float16"),
    ],
)
def test_options_that_say_nonsense(asked, options, said):
    result, _ = asked(*options)
    assert (result.exit_code, said in " ".join(result.output.split())) == (2, True), result.output


def test_nothing_is_saved_of_what_cannot_run(asked, tmp_path):
    result, _ = asked("--strategies", "oracle", "--tasks", "where", "--model", "no-such", "--save-config", "a.yaml")
    assert result.exit_code == 2
    assert not (tmp_path / "a.yaml").exists()


def test_one_spelling_over_the_commands(cli):
    for command in (("compare",), ("bench",), ("explain",)):
        assert "--strategy" in cli(*command, "--help").output
    for command in (("compare",), ("train",), ("calibrate", "gsearch")):
        assert "--tasks" in cli(*command, "--help").output
