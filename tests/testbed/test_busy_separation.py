"""Whether methods separate, read from a comparison's folder."""

import json

import pytest

from tokentrim.testbed.training import check
from tokentrim.testbed.training.busy.separation import MethodMean, Separation, read_separations, separation_table

N = 40
RIGHT = {"oracle": 40, "random": 2, "none": 40, "good": 36, "fair": 16, "poor": 4}


def rows_of(right, budget=0.11, tasks=("busy-color", "busy-sign"), model="m"):
    """Every method answers the first so many questions of every task."""
    return [
        {
            "method": method,
            "model": model,
            "task": task,
            "sample": f"{task}/{i}",
            "budget_requested": None if method == "none" else budget,
            "score": float(i < n),
        }
        for method, n in right.items()
        for task in tasks
        for i in range(N)
    ]


def written(folder, rows):
    (folder / "results.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_methods_that_separate(tmp_path):
    folder = written(tmp_path, [*rows_of(RIGHT), *rows_of(RIGHT, 0.33)])
    wide, narrow = read_separations([folder], "somewhere/m")
    assert (wide.budget, narrow.budget) == (0.33, 0.11)
    assert [found.name for found in narrow.methods] == ["good", "fair", "poor"]
    assert narrow.spread == pytest.approx(0.8)
    assert narrow.median.name == "fair"
    assert [found.name for found in narrow.over] == ["good", "fair", "poor"]
    assert narrow.over[0].mean == pytest.approx(0.1)
    assert not wide.over
    assert not list(narrow.complaints())
    assert len(separation_table([wide, narrow], [folder]).rows) == 2


def test_methods_that_do_not(tmp_path):
    folder = written(tmp_path, rows_of({"oracle": 36, "good": 36, "same": 35, "poor": 34}))
    (found,) = read_separations([folder], "m")
    spread, touch, noise = found.complaints()
    assert spread == "methods spread over 5.0 points, below 25"
    assert touch == "the intervals of the best and of the median method touch"
    assert noise.startswith("within noise of the oracle on fine tasks: ")
    assert "good" in noise


def test_a_second_comparison_asks_more_of_the_same(tmp_path):
    """Of one task it asks the same forty questions and forty more, of which one method answers others than before."""
    few, more = tmp_path / "few", tmp_path / "more"
    for folder in (few, more):
        folder.mkdir()
    rows = rows_of(RIGHT, tasks=("busy-sign",))
    rows += [{**row, "sample": f"more/{row['sample']}", "score": float(row["method"] == "oracle")} for row in rows]
    (found,) = read_separations([written(few, rows_of(RIGHT)), written(more, rows)], "m")
    assert found.methods[0].mean == pytest.approx((36 / 40 + 36 / 80) / 2)
    assert found.over[0].mean == pytest.approx(1 - 36 / 80)


def test_of_two_in_the_middle_the_better_one_counts():
    methods = tuple(MethodMean(name, 0.5, 0.4, 0.6) for name in "abcd")
    assert Separation(0.33, methods).median.name == "b"


def test_only_shared_questions_count(tmp_path):
    """What failed is in no score, a method without one of the tasks in no row, and seeds are averaged."""
    rows = rows_of(RIGHT)
    for row in rows:
        if row["method"] == "fair" and row["sample"] == "busy-sign/39":
            row["score"] = None
    rows += [row for row in rows_of({"half": 40}) if row["task"] == "busy-color"]
    rows += [{**row, "score": 0.0} for row in rows if row["method"] == "good"]
    (found,) = read_separations([written(tmp_path, rows)], "m")
    assert [one.name for one in found.methods] == ["good", "fair", "poor"]
    assert found.methods[0].mean == pytest.approx((18 / 40 + 18 / 39) / 2)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (rows_of(RIGHT, model="other"), "must be m; got \\['other'\\]"),
        (
            rows_of(RIGHT, tasks=("color",)),
            "must be the folder of a finished comparison on busy tasks; got 'no answers",
        ),
        ([], "must be the folder of a finished comparison on busy tasks; got 'no answers"),
        (rows_of(RIGHT, 0.33), "must have oracle, other methods and fine tasks at 11%; got \\[0.33\\]"),
        (rows_of({"oracle": 3, "random": 4}), "must have methods beside controls; got \\['oracle', 'random'\\]"),
        ([{**rows_of(RIGHT)[0], "score": "x"}], "must be the folder of a finished comparison; got .*'x'"),
        ([{"method": "x"}], "must be the folder of a finished comparison; got \"'model'\""),
    ],
)
def test_folders_that_show_nothing(tmp_path, rows, message):
    with pytest.raises(ValueError, match=message):
        read_separations([written(tmp_path, rows)], "m")


def test_a_folder_without_results(tmp_path):
    with pytest.raises(ValueError, match="must be the folder of a finished comparison; got .*No such file"):
        read_separations([tmp_path], "m")


def test_other_models_have_no_such_comparison(tmp_path, capsys):
    assert check.main(["--model", "testbed-plain", "--comparison", str(tmp_path)]) == 2
    assert "--comparison must be of a model of the busy pictures; got 'testbed-plain'" in capsys.readouterr().err


def test_means_of_no_samples_fit_nothing(capsys):
    assert check.main(["--model", "testbed-plain", "--n", "0"]) == 2
    assert capsys.readouterr().err == "--n must be at least 1; got 0.\n"
