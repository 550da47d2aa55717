"""``tokentrim calibrate``: what it prints, what it writes, and what it refuses."""

import pytest

PLAIN = ("--model", "testbed-plain", "--task", "where", "--samples", "2")


def test_gsearch_writes_a_schedule_that_a_plan_takes(cli, tmp_path):
    out = tmp_path / "g.yaml"
    about = cli("calibrate", "gsearch", "--out", out, *PLAIN, "--resolution", "0.5", "--first", "3", "--json").data
    assert about["method"] == "gsearch"
    assert about["strategy"] == {"name": "layer-counts", "file": str(out)}
    assert about["provenance"]["split"] == "calibration"
    planned = cli("plan", "--model", "testbed-plain", "-s", f"{{name: layer-counts, file: {out}}}", "--json")
    assert planned.exit_code == 0, planned.stderr
    again = cli("calibrate", "gsearch", "--out", out, *PLAIN, "--resolution", "0.5", "--first", "3")
    assert again.exit_code == 0
    assert "finished already" in again.stdout
    assert "run it with" in again.stdout


def test_psigmoid_for_people(cli, tmp_path):
    result = cli("calibrate", "psigmoid", "--out", tmp_path / "p.yaml", *PLAIN, "--trials", "2", "--budget", "0.5")
    assert result.exit_code == 0, result.stderr
    assert "layer mean ratio   0.5" in result.stdout
    assert "3/3 measurements" in result.stdout


def test_fitprune_writes_a_recipe_that_a_plan_takes(cli, tmp_path):
    out = tmp_path / "f.yaml"
    result = cli("calibrate", "fitprune", "--out", out, *PLAIN, "--flops-cut", "0.4")
    assert result.exit_code == 0, result.stderr
    assert "7/7 measurements" in result.stdout
    planned = cli("plan", "--model", "testbed-plain", "-s", f"{{name: fitprune, file: {out}}}", "--json")
    assert planned.exit_code == 0, planned.stderr


def test_heads_writes_a_strategy_that_runs(cli, tmp_path):
    out = tmp_path / "heads.yaml"
    result = cli("calibrate", "heads", "--out", out, *PLAIN, "--keep", "0.75")
    assert result.exit_code == 0, result.stderr
    assert "heads kept         75.0%" in result.stdout
    assert cli("validate", out).exit_code == 0
    again = cli("calibrate", "heads", "--out", out, *PLAIN)
    assert again.exit_code == 2
    assert "be a new file" in again.stderr


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (("gsearch", "--quality", "good"), "'score' or 'likelihood'"),
        (("gsearch", "--task", "wher"), "Did you mean 'where'?"),
        (("psigmoid", "--budget", "0"), "budget of calibrate psigmoid"),
        (("psigmoid", "--budget", "0.01"), "Raise --budget"),
        (("vtw", "--first", "6"), "be below 6"),
        (("fitprune", "--flops-cut", "1"), "flops_cut of calibrate fitprune"),
        (("vtw", "--device", "tpu"), "device of the model of calibrate vtw"),
        (("gsearch", "--model", "tesbed"), "Did you mean 'testbed'?"),
    ],
)
def test_bad_input_is_refused(cli, tmp_path, arguments, part):
    method, *more = arguments
    result = cli("calibrate", method, "--out", tmp_path / "x.yaml", *PLAIN, *more)
    assert result.exit_code == 2, (result.stdout, result.stderr)
    assert part in result.stderr
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "x.yaml").exists()


def test_an_out_is_needed(cli):
    result = cli("calibrate", "gsearch")
    assert result.exit_code == 2
    assert "--out" in result.stderr
