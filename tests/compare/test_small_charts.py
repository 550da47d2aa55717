"""Many methods on several charts: a few on each, beside random, and the same ones in the page and in the picture."""

from itertools import pairwise
from pathlib import Path

import pytest
from PIL import Image

from tokentrim.compare.families import TOGETHER, charts_of, families, telling_cost
from tokentrim.compare.plots import pareto
from tokentrim.compare.summary import Summary
from tokentrim.compare.tables import roles_of

STAGES = {"divprune": "before", "fastv": "inside", "snapkv": "in the cache", "": "other"}


def row(method, strategy, budget, score, metric="exact"):
    return {
        "method": method, "strategy": {"name": strategy} if strategy else None, "control": None, "model": "m",
        "seed": 0, "seeds": [0], "failures": 0,
        "budget_requested": budget, "matched_by": "layer_mean_ratio", "boundary": None, "unit": "%", "metric": metric,
        "tasks": ["where"], "accuracy": score, "accuracy_low": score - 0.02, "accuracy_high": score + 0.02,
        "layer_mean_ratio": 1.0 if strategy == "snapkv" else budget or 1.0, "kv_mean_ratio": budget or 1.0,
        "flops_ratio": 1.0 if strategy == "snapkv" else budget or 1.0,
    }  # fmt: skip


def data_of(per_stage, metrics=("exact",)):
    rows = [row(name, name, budget, 0.4, metric)
            for metric in metrics for name, budget in (("none", None), ("random", 0.5))]  # fmt: skip
    for metric in metrics:
        for strategy in STAGES:
            for number in range(per_stage):
                rows += [row(f"{strategy or 'mine'} {number}", strategy, budget, 0.9, metric) for budget in (0.5, 0.25)]
    return {"cells": rows, "overall": rows, "models": {"m": {}}}


def test_few_methods_share_a_chart_for_each_cost():
    data = data_of(2)
    look = roles_of(data)
    assert families(data, look) == []
    assert [chart.axis for chart in charts_of(data, data["overall"], look)] == ["share of the unpruned run"] * 3


def test_many_methods_have_charts_by_where_they_act_and_each_method_one():
    data = data_of(9)
    look = roles_of(data)
    found = families(data, look)
    # Nine of a stage make two charts.
    starts = [*STAGES.values(), "controls and bounds"]
    assert [one.title.startswith(start) for one, start in zip(found[::2], starts, strict=True)] == [True] * len(starts)
    assert found[0].title == "before the language model (1 of 2)"
    named = [method for one in found for method in one.methods]
    methods = [name for name, one in look.items() if one.role == "method"]
    assert sorted(named) == sorted([*methods, "random"])
    assert len(methods) > TOGETHER
    assert max(len(one.methods) for one in found) <= 7


def test_small_charts_show_random_and_keep_the_others_grey():
    data = data_of(9)
    charts = charts_of(data, data["overall"], roles_of(data))
    # Of the costs, the cache's is the one that every method lowers.
    assert telling_cost(data["overall"]) == "kv_mean_ratio"
    for chart in charts:
        assert "visual KV" in chart.axis
        assert "random" in [series.method for series in chart.series]
        assert len(chart.series) + len(chart.grey) == 9 * len(STAGES) + 1
        heights = sorted(label.y for label in chart.labels)
        assert all(below - above >= 14 for above, below in pairwise(heights))


def test_names_stand_below_the_line_of_the_unpruned_run():
    rows = [row("none", "none", None, 0.98), *(row(f"m{n}", "", 0.5, 0.98) for n in range(3))]
    chart = charts_of({"cells": rows}, rows, roles_of({"cells": rows, "overall": rows}))[0]
    assert all(label.y - 8 > chart.reference.y for label in chart.labels)


def test_a_name_beyond_the_others_is_written_over_neither_them_nor_the_line():
    near = [row(f"near {n}", "", 0.5, 0.9) for n in range(3)]
    rows = [row("none", "none", None, 0.9), *near, row("far off", "", 0.7, 0.9)]
    chart = charts_of({"cells": rows}, rows, roles_of({"cells": rows, "overall": rows}))[0]
    far = next(label for label in chart.labels if label.method == "far off")
    assert far.anchor == "end"
    assert all(abs(far.y - label.y) >= 14 for label in chart.labels if label is not far)
    assert abs(far.y - 4 - chart.reference.y) >= 7


@pytest.mark.parametrize("metrics", [("exact",), ("exact", "f1"), ("exact", "f1", "anls")])
def test_the_picture_has_them_all(tmp_path: Path, metrics):
    found = Summary(tmp_path, data_of(3, metrics))
    with Image.open(pareto(found, "m", tmp_path / "pareto.png")) as image:
        assert image.width > 0.6 * max(2, len(metrics)) * 600
