"""A finished cell's file says whose it is and holds what a cell gives, or it is refused by its name."""

import shutil

import pytest

from tokentrim.compare import run
from tokentrim.compare.config import load_compare
from tokentrim.compare.expand import expand
from tokentrim.compare.folder import ResultsFolder
from tokentrim.errors import DataError, ResultsError
from tokentrim.executors.local import LocalExecutor
from tokentrim.plugins.loader import registry
from tokentrim.runs.cells import locate
from tokentrim.runs.files import read_lines, write_lines


@pytest.fixture(scope="module")
def cells(small):
    config = load_compare(small)
    return expand(config, [locate(config.models[0])])


@pytest.fixture
def copy(finished, tmp_path):
    return ResultsFolder(shutil.copytree(finished.folder, tmp_path / "run"))


def change(folder, cell, edit):
    """Let ``edit`` change a cell's lines in place."""
    path = folder.cells / f"{cell.key}.jsonl"
    lines = read_lines(path, "")
    edit(lines)
    write_lines(path, lines)


def put(place, name, value):
    return lambda lines: lines[place].update({name: value})


def test_every_finished_cell_is_read_back_as_it_was_stored(copy, cells):
    for cell in cells:
        found = copy.read(cell)
        if found is None:  # text-only cells that only finished ones asked for are further ones
            continue
        before = (copy.cells / f"{cell.key}.jsonl").read_bytes()
        assert copy.write(cell, found) == found
        assert (copy.cells / f"{cell.key}.jsonl").read_bytes() == before


def test_a_text_may_hold_whatever_ends_a_line_elsewhere(copy, cells):
    text = "a\u2028b\u2029c\x85d\re\x0bf\x1cg"
    change(copy, cells[0], lambda lines: lines[1].update(question=text, answer=text, prediction=text, sample=text))
    assert copy.read(cells[0]).samples[0]["prediction"] == text


@pytest.mark.parametrize(
    "edit",
    [put(0, "key", "0" * 16), put(2, "key", "0" * 16), put(1, "method", "st3"), put(0, "seed", 7), put(0, "skipped", 3),
     put(1, "score", 99), put(1, "score", 0.5), put(1, "score", -1), put(1, "score", "1"), put(1, "prediction", None),
     put(1, "prediction", 3), put(1, "sample", ["a"]), put(1, "failure", False), put(0, "flops_ratio", "0.5"),
     put(0, "flops_ratio", [1]), put(0, "pictures", [1]), put(0, "pictures", {"a": {}}), put(0, "aggregate", "1"),
     put(0, "solved", 3), put(0, "boundary", 1.5), put(0, "strategy", "st3"), put(0, "placement", 3),
     lambda lines: lines.pop(), lambda lines: lines.append(lines[-1]), lambda lines: lines[0].pop("failure"),
     lambda lines: lines.__delitem__(slice(1, None)), lambda lines: lines.pop(0),
     lambda lines: next(iter(lines[0]["pictures"].values()))["cells"]["runs"][0].__setitem__(2, 10**9),
     lambda lines: next(iter(lines[0]["pictures"].values()))["prefill"][0].__setitem__(1, "0-999999999")],
)  # fmt: skip
def test_what_is_not_this_cells_is_refused(copy, cells, edit):
    change(copy, cells[0], edit)
    with pytest.raises(
        ResultsError, match=rf"{cells[0].key}\.jsonl must be what tokentrim wrote there.*remove the file"
    ):
        copy.read(cells[0])


def test_swapped_files_are_refused_by_a_run_that_goes_on(copy, cells, small):
    one, two = (copy.cells / f"{cell.key}.jsonl" for cell in cells[:2])
    held = one.read_bytes(), two.read_bytes()
    one.write_bytes(held[1])
    two.write_bytes(held[0])
    with pytest.raises(ResultsError, match=one.name):
        run(small, copy.path)
    assert (one.read_bytes(), two.read_bytes()) == held[::-1]


def test_what_was_measured_says_what_it_is(copy, cells):
    row = {"strategy": None, "reason": "no", "about": None}
    copy.keep("knobs", "a", row)
    assert copy.measured("knobs", "a") == row
    (copy.path / "knobs" / "a.json").rename(copy.path / "knobs" / "b.json")
    with pytest.raises(ResultsError, match=r"b\.json .*something else"):
        copy.measured("knobs", "b")
    copy.keep("knobs", "c", {**row, "strategy": "st3"})
    with pytest.raises(ResultsError, match=r"c\.json .*strategy"):
        copy.measured("knobs", "c")
    copy.keep("timings", "d", row)
    with pytest.raises(ResultsError, match=r"d\.json "):
        copy.measured("timings", "d")


ONE = {
    "models": ["testbed-plain"],
    "tasks": ["where", {"task": "color", "samples": 1}],
    "samples": 6,
    "strategies": ["none"],
    "budgets": [0.5],
    "text_only": False,
    "controls": [],
    "timing": False,
    "pictures": 0,
}


def test_a_score_that_is_none_fails_its_question_and_the_rest_is_kept(tmp_path, monkeypatch):
    task = registry("task").get("where")
    strange = dict(
        zip([s.id for s in task.samples("test", 6)], [float("nan"), float("inf"), "1", 99, None], strict=False)
    )

    def score(sample, prediction):
        if sample.id not in strange:
            raise ValueError("half a character \ud800")
        return strange[sample.id]

    monkeypatch.setattr(task, "score", score, raising=False)
    monkeypatch.setattr(task, "aggregate", lambda answered: float("nan"), raising=False)
    summary = run(ONE, tmp_path, formats=["csv"])
    assert summary.failures == 6
    where, color = summary.cells
    assert (where["n"], where["failures"], color["failures"]) == (1, 6, 0)
    monkeypatch.undo()
    assert run(ONE, tmp_path, formats=["csv"]).failures == 0


def test_questions_that_cannot_be_had_are_named_before_anything_is_written(tmp_path, monkeypatch):
    task = registry("task").get("color")
    for given in (lambda split, n: (sample for sample in ()), lambda split, n: []):
        monkeypatch.setattr(task, "samples", given, raising=False)
        with pytest.raises(DataError, match="'color'"):
            run(ONE, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_task_that_breaks_later_fails_its_cells_alone(tmp_path, monkeypatch):
    task, calls = registry("task").get("color"), []

    def samples(split, n):
        calls.append(n)
        if len(calls) > 1:
            raise OSError("the disk is gone")
        return registry("task").get("where").samples(split, n)

    monkeypatch.setattr(task, "samples", samples, raising=False)
    summary = run(ONE, tmp_path, formats=["csv"])
    assert summary.failures == 1
    assert "the disk is gone" in summary.first_cause
    assert [row["n"] for row in summary.cells] == [6, 0]


def test_what_an_executor_makes_up_is_a_failure_of_its_cell(tmp_path):
    class Liar(LocalExecutor):
        name = "liar"

        def run(self, jobs, say):
            for outcome in super().run(jobs, say):
                outcome.result.samples[0]["score"] = 99
                yield outcome

    summary = run(ONE, tmp_path, executor=Liar(), formats=["csv"])
    assert summary.failures == 2
    assert "what it gave cannot be stored" in summary.first_cause
