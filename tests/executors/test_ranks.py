"""Ranks: what two of them find of a cell together is what one process finds."""

import json

from tokentrim.compare.config import load_compare
from tokentrim.compare.expand import expand
from tokentrim.loading import load_model
from tokentrim.plugins.loader import registry
from tokentrim.runs.answer import run_cell
from tokentrim.runs.cells import locate
from tokentrim.runs.figures import CLOCKED
from tokentrim.runs.ranks import ALONE, Ranks, join, joined
from tokentrim.runs.work import work_of


class Recorded(Ranks):
    """A rank that meets what the others left for it."""

    def gather(self, mine):
        self.__dict__.setdefault("heard", []).append(mine)
        others = self.__dict__.get("others", [])
        return [*others, mine] if self.index else [mine, *others]


def plain(result):
    head = {key: value for key, value in result.head.items() if key not in CLOCKED}
    return json.dumps([head, result.samples])


def test_without_torchrun_a_process_is_alone():
    assert join(["cpu"]) == joined() == ALONE
    assert ALONE.first
    assert ALONE.gather(3) == [3]
    assert ALONE.share(lambda: 4) == 4


def test_a_question_that_fails_on_one_rank_is_recorded_by_all(monkeypatch):
    task = registry("task").get("where")
    score, bad = task.score, task.samples("test", 5)[4].id

    def broken(sample, prediction):
        if sample.id == bad:
            raise RuntimeError("no such luck")
        return score(sample, prediction)

    monkeypatch.setattr(task, "score", broken, raising=False)
    config = load_compare(
        {"models": ["testbed-plain"], "tasks": ["where"], "samples": 7, "strategies": ["fastv"], "batch_size": 3}
    )
    cell = next(cell for cell in expand(config, [locate(config.models[0])]) if cell.budget == 0.5)
    work = work_of(cell, load_model("testbed-plain", "cpu"))
    assert len(work.batches) == 3, "the ranks have unequal shares"
    whole = run_cell(cell, work)
    assert [sample["failure"] for sample in whole.samples if sample["failure"]] == ["RuntimeError: no such luck"]
    second = Recorded(1, 2)
    run_cell(cell, work, second)
    first = Recorded(0, 2)
    first.__dict__["others"] = second.__dict__["heard"]
    assert plain(run_cell(cell, work, first)) == plain(whole)
    second.__dict__["others"] = first.__dict__["heard"]
    assert plain(run_cell(cell, work, second)) == plain(whole)
