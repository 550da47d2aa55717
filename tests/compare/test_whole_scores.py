"""Tasks that score all answers together: the task's own number, and nothing claimed beside it."""

import math

from tokentrim.compare.config import load_compare
from tokentrim.compare.expand import expand
from tokentrim.compare.summary import Summary, build
from tokentrim.compare.tables import overall_grid, score_text, task_grid
from tokentrim.runs.cells import locate
from tokentrim.runs.results import CellResult


def summary_of(tmp_path, aggregates, scores=(1.0, 0.0)):
    """The summary of 'none' and 'random' on one task, each with its aggregate and the same single scores."""
    config = load_compare(
        {"tasks": ["where"], "strategies": ["random"], "budgets": [0.5], "text_only": False, "controls": []}
    )
    cells = expand(config, [locate(config.models[0])])
    results = {}
    for cell, aggregate in zip(cells, aggregates, strict=True):
        samples = [
            {"sample": str(n), "prediction": f"{cell.method} {n}", "score": score, "failure": None}
            for n, score in enumerate(scores)
        ]
        head = {"key": cell.key, "skipped": None, "failure": None, "aggregate": aggregate, "layer_mean_ratio": 0.5}
        results[cell.key] = CellResult(head, samples)
    data = build(cells, results, {"models": {"testbed": {}}})
    return Summary(tmp_path, data)


def test_an_aggregate_is_the_score_and_has_no_interval_and_no_test(tmp_path):
    found = summary_of(tmp_path, (1478.2, 900.0), scores=(None, None))
    none, random = found.cells
    assert (none["accuracy"], random["accuracy"]) == (1478.2, 900.0)
    assert none["n"] == random["n"] == 2
    for name in ("accuracy_low", "accuracy_high", "p_vs_none", "p_vs_random"):
        assert random[name] is None
    assert random["agreement"] == 0.0
    assert [row["accuracy"] for row in found.overall] == [1478.2, 900.0]
    assert any("own aggregation" in note for note in found.data["notes"])


def test_an_aggregate_that_is_the_mean_of_the_scores_keeps_interval_and_test(tmp_path):
    plain, own = summary_of(tmp_path, (None, None)), summary_of(tmp_path, (0.5, 0.5))
    assert plain.cells == own.cells
    assert own.cells[1]["accuracy_low"] is not None
    assert own.cells[1]["p_vs_none"] == 1.0
    assert plain.overall == own.overall


def test_scales_beyond_one_are_printed_as_they_are(tmp_path):
    found = summary_of(tmp_path, (1478.2, 0.9), scores=(None, None))
    assert [score_text(row) for row in found.cells] == ["1478.2", "0.9"]
    shares = summary_of(tmp_path, (0.8, 0.25), scores=(None, None))
    assert [score_text(row) for row in shares.cells] == ["80.0", "25.0"]
    header, lines = overall_grid(found.data, "testbed")
    assert "1478.2" in lines[0]
    assert "short answers" in header
    assert task_grid(found.data, "testbed")[1][0][-1] == "1478.2"


def test_a_picture_can_be_drawn_of_scores_without_intervals(tmp_path):
    from tokentrim.compare.plots import pareto

    found = summary_of(tmp_path, (1478.2, 900.0), scores=(None, None))
    for row in found.overall:
        row.update(kv_mean_ratio=0.5, flops_ratio=0.5)
    assert pareto(found, "testbed", tmp_path / "pareto.png").stat().st_size > 0
    assert not any(math.isnan(value) for row in found.cells for value in row.values() if isinstance(value, float))
