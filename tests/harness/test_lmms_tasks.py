"""lmms-eval's tasks in a comparison: documents, prompts and scores are its own; what is wrong is said before a run."""

import json

import pytest

from tests.harness.local_task import write_task
from tokentrim.errors import ConfigError, DataError, UnknownNameError, UnsupportedError
from tokentrim.plugins.loader import registry
from tokentrim.testbed.tasks import TASKS

pytestmark = [pytest.mark.lmms, pytest.mark.slow]


@pytest.fixture
def task(tasks_folder, home, monkeypatch):
    monkeypatch.setenv("HF_HOME", home["HF_HOME"])
    monkeypatch.chdir(tasks_folder)

    def task(where="local_where.yaml", changes=None):
        if changes is not None:
            write_task(tasks_folder, where.removesuffix(".yaml"), **changes)
        return registry("task").get(f"lmms:{where}")

    return task


def test_documents_are_samples(task):
    found = task()
    samples, own = found.samples("test", 6), TASKS["where"].samples("test", 6)
    assert [(s.question, s.answer, s.messages) for s in samples] == [(s.question, s.answer, None) for s in own]
    assert [s.images[0].tobytes() for s in samples] == [s.images[0].tobytes() for s in own]
    assert samples[:2] == found.samples("test", 2)
    assert found.samples("calibration", 1)[0].question == TASKS["where"].samples("calibration", 1)[0].question
    assert (found.max_new_tokens, found.metric_name) == (16, "right")


def test_scores_and_aggregates_are_the_tasks_own(task):
    for name, scores, whole in (("", [1.0, 0.0], 0.5), ("@in_points", [1.0, 0.0], 100.0)):
        found = task(f"local_where.yaml{name}")
        samples = found.samples("test", 2)
        answers = [samples[0].answer, "nothing"]
        said = list(zip(samples, answers, strict=True))
        assert [found.score(*pair) for pair in said] == scores
        assert found.aggregate(said) == whole
    found = task("local_where.yaml@share_of_words")
    samples = found.samples("test", 2)
    assert found.score(samples[0], samples[0].answer) is None
    words = sum(len(sample.answer.split()) for sample in samples)
    whole = len(samples[0].answer.split()) / words
    assert found.aggregate([(samples[0], samples[0].answer), (samples[1], "nothing")]) == pytest.approx(whole)


def test_conversations_keep_their_turns(task):
    line = "doc_to_messages: !function utils.messages\ndoc_to_text: question"
    (sample,) = task("turns.yaml", {"doc_to_text": line}).samples("test", 1)
    assert [turn["role"] for turn in sample.messages] == ["system", "user"]
    assert [part["type"] for part in sample.messages[1]["content"]] == ["text", "image", "text"]


def test_an_answer_is_scored_up_to_its_stop_text(task):
    found = task("stops.yaml", {"  until": '  until: ["Q:"]'})
    (sample,) = found.samples("test", 1)
    assert found.score(sample, f"{sample.answer} Q: and more") == 1.0


def test_filters_are_applied(task):
    line = (
        "filter_list:\n  - name: first_words\n    filter:\n      - function: lowercase\n      - function: take_first\n"
        "output_type: generate_until"
    )
    found = task("filtered.yaml", {"output_type": line})
    (sample,) = found.samples("test", 1)
    assert found.score(sample, sample.answer.upper()) == 1.0


@pytest.mark.parametrize(
    ("name", "error", "said"),
    [
        ("gqq", UnknownNameError, "did you mean 'lmms:gqa'"),
        ("mmbench", ConfigError, "given as its single tasks"),
        ("no/such.yaml", UnknownNameError, "must exist"),
        ("local_where.yaml@rigth", ConfigError, "Did you mean 'right'"),
        ("local_where.yaml@", ConfigError, "lmms:NAME@METRIC"),
        ("gqa", DataError, "the data of lmms task 'gqa' must be here"),
    ],
)
def test_what_is_not_there_is_said(task, name, error, said):
    with pytest.raises(error, match=f"(?i){said}"):
        task(name)


def test_a_task_that_cannot_be_compared_is_refused(task):
    with pytest.raises(ConfigError, match="greedily"):
        task("warm.yaml", {"  do_sample": "  do_sample: true", "  temperature": "  temperature: 0.7"})
    with pytest.raises(ConfigError, match="more is better"):
        task("less.yaml", {"    higher_is_better": "    higher_is_better: false"})
    found = task("moving.yaml", {"doc_to_visual": "doc_to_visual: !function utils.film"})
    with pytest.raises(UnsupportedError, match="text and images only; got 'video'"):
        found.samples("test", 1)


def test_the_origin_of_a_file_changes_with_it(task, tasks_folder):
    task("changing.yaml", {})
    before = registry("task").entry("lmms:changing.yaml").origin
    write_task(tasks_folder, "changing", max_new_tokens=3)
    after = registry("task").entry("lmms:changing.yaml").origin
    assert (before.distribution, after.distribution) == ("lmms_eval", "lmms_eval")
    assert before.version != after.version


def test_a_comparison_scores_them_like_the_testbeds_own(run, tasks_folder, tmp_path):
    file = tasks_folder / "local_where.yaml"
    names = [f"lmms:{file}", f"lmms:{file}@in_points", f"lmms:{file}@share_of_words", "where"]
    config = tmp_path / "compare.yaml"
    config.write_text(
        json.dumps(
            {
                "models": ["testbed-plain"],
                "tasks": names,
                "samples": 6,
                "strategies": ["random", "fastv"],
                "budgets": [0.5],
                "text_only": False,
            }
        )
    )
    found = run("-m", "tokentrim", "compare", config, "--out", tmp_path / "out")
    assert found.code == 0, found.said
    rows = json.loads((tmp_path / "out" / "summary.json").read_text())["cells"]
    table = {(row["method"], row["task"]): row for row in rows}
    for method in ("none", "random", "fastv"):
        own, theirs, points, words = (table[method, name] for name in (names[3], *names[:3]))
        same = ("n", "accuracy", "accuracy_low", "accuracy_high", "p_vs_none", "p_vs_random", "agreement",
                "layer_mean_tokens", "kv_end_ratio", "pruning_events", "failures")  # fmt: skip
        assert {name: theirs[name] for name in same} == {name: own[name] for name in same}
        assert points["accuracy"] == pytest.approx(600 * own["accuracy"])
        assert (points["accuracy_low"], points["p_vs_none"], points["unit"]) == (None, None, "")
        assert words["metric"] == "share_of_words"
    report = (tmp_path / "out" / "report.md").read_text()
    assert "own aggregation" in report
    assert "share_of_words" in report


def test_a_comparison_without_the_data_ends_before_it_begins(run, tmp_path):
    config = tmp_path / "compare.yaml"
    config.write_text("tasks: ['lmms:gqa']\nstrategies: [random]\n")
    found = run("-m", "tokentrim", "compare", config, "--out", tmp_path / "out")
    assert found.code == 2
    assert "the data of lmms task 'gqa' must be here" in found.said
    assert "Traceback" not in found.said
    assert not (tmp_path / "out").exists()
