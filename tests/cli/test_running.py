"""Commands that run a model: the answer, what was kept, what it cost."""

import pytest
from PIL import Image

from tokentrim import EngineError
from tokentrim.selftest import checks, running

PLAIN = ("--model", "testbed-plain", "--max-new-tokens", "6")


def test_run_answers_and_says_what_was_kept(cli, picture, sample):
    about = cli(
        "run", "-i", picture, "-p", sample.question, "-s", "{name: fastv, k: 2, keep_ratio: 0.3}", *PLAIN, "--json"
    ).data
    assert about["answer"]
    assert about["same_answer"] == (about["answer"] == about["unpruned_answer"])
    assert [(stage["from_layer"], stage["count"]) for stage in about["kept"]] == [(0, 100), (2, 30)]
    assert about["report"]["tokens_per_layer"] == [100, 100, 30, 30, 30, 30]
    assert about["unpruned_report"]["layer_mean_ratio"] == 1.0
    assert about["strategy"]["name"] == "fastv"


def test_run_for_people(cli, picture, sample, tmp_path):
    overlay = tmp_path / "kept.png"
    result = cli("run", "-i", picture, "-p", sample.question, "-s", "st3", *PLAIN, "--overlay", overlay)
    assert result.exit_code == 0, result.stderr
    assert "the unpruned model" in result.stdout
    assert "layer 2" in result.stdout
    with Image.open(overlay) as image:
        assert image.width > 2 * image.height


def test_run_from_a_file_without_the_baseline(cli, picture, sample, tmp_path):
    file = tmp_path / "s.yaml"
    file.write_text("model: testbed-plain\nstrategy: {name: random, keep_count: 10}\n")
    arguments = (
        "run",
        "-i",
        picture,
        "-p",
        sample.question,
        "-c",
        file,
        "--max-new-tokens",
        "3",
        "--no-baseline",
        "--json",
    )
    about = cli(*arguments).data
    assert about["unpruned_answer"] is None
    assert about["kept"][0]["count"] == 10
    assert about["model"] == "testbed-plain"


def test_a_run_that_breaks_is_no_bad_input(cli, picture, sample, monkeypatch):
    import tokentrim.session

    def broken(*_, **__):
        raise EngineError("an invariant broke")

    monkeypatch.setattr(tokentrim.session, "trim", broken)
    result = cli("run", "-i", picture, "-p", sample.question, "-s", "fastv", *PLAIN)
    assert result.exit_code == 1
    assert "an invariant broke" in result.stderr


def test_doctor_checks_a_model_on_a_small_copy(cli):
    found = cli("doctor", "--model", "testbed-plain", "--json").data
    checks = {check["name"]: check["ok"] for check in found["model"]["checks"]}
    assert {"family", "keep everything", "drop is mask", "row is batch", "restored"} <= checks.keys()
    assert all(checks.values())
    assert found["model"]["served"]
    assert found["problems"] == []
    assert found["packages"]["torch"]


def test_doctor_says_when_a_check_fails(cli, monkeypatch):
    def fails(subject):
        raise checks.Failed("logits differ")

    monkeypatch.setattr(running, "CHECKS", (("keep everything", fails, frozenset()),))
    result = cli("doctor", "--model", "testbed-plain")
    assert result.exit_code == 1
    assert "logits differ" in result.stdout + result.stderr


@pytest.mark.slow
def test_compare_prints_a_table_and_paths(cli, tmp_path):
    file = tmp_path / "c.yaml"
    file.write_text(
        "models: [testbed-plain]\ntasks: [where]\nsamples: 2\nstrategies: [random]\nbudgets: [0.5]\ntext_only: false\n"
        "controls: []\ntiming: false\n"
    )
    result = cli("compare", file, "--out", tmp_path / "run")
    assert result.exit_code == 0, result.stderr
    assert "short answers" in result.stdout
    assert str(tmp_path / "run" / "report.md") in result.stdout
    about = cli("compare", file, "--out", tmp_path / "run", "--json")
    assert len(about.data["cells"]) == 2
