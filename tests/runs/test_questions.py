"""Tasks are strangers: whatever they give is looked at, and named, where it is given."""

from types import MappingProxyType
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tokentrim.contracts.declared import wrong_in_task
from tokentrim.contracts.tasks import Sample, Task
from tokentrim.errors import DataError, reason_of
from tokentrim.runs.questions import aggregate_of, questions_of, score_of, training_of

PICTURE = Image.new("RGB", (4, 4))
GOOD = Sample("a", (PICTURE,), "q", "a")


class Strange(Task):
    """Gives what it is told to."""

    name, metric, max_new_tokens, description = "strange", "graded", 4, "strange"

    def __init__(self, **given):
        self.given = given

    def _give(self, name):
        found = self.given.get(name)
        if isinstance(found, Exception):
            raise found
        return found

    def samples(self, split, n) -> Any:
        return self._give("samples")

    def score(self, sample, prediction):
        return self._give("score")

    def aggregate(self, answered):
        return self._give("aggregate")


def changed(**fields):
    return Sample(**{"id": "a", "images": (PICTURE,), "question": "q", "answer": "a", **fields})


@pytest.mark.parametrize(
    "given",
    [None, "text", 3, iter([GOOD]), {GOOD.id: GOOD}, [], [None], ["a"], [GOOD, GOOD], ValueError("no luck \ud800"),
     [changed(id=3)], [changed(question=None)], [changed(question="\udc80")], [changed(answer=4)],
     [changed(images=PICTURE)], [changed(images=(np.zeros((4, 4, 3)),))], [changed(evidence=None)]],
    ids=lambda given: type(given).__name__,
)  # fmt: skip
def test_what_is_no_list_of_questions_is_named(given):
    for ask in (lambda task: questions_of(task, "test", 1), lambda task: training_of(task, 0)):
        if ask(Strange(samples=[GOOD])) != [GOOD]:
            pytest.fail("a good task must be taken")
        if given == [GOOD, GOOD] and len(training_of(Strange(samples=given), 0)) == 2:
            continue
        with pytest.raises(DataError, match="'strange'") as found:
            ask(Strange(samples=given))
        str(found.value).encode()


@pytest.mark.parametrize("metric", ["exact", "f1", "graded"])
@pytest.mark.parametrize(
    "value",
    ["1", b"1", [1.0], (), 1j, torch.ones(1), torch.tensor(1.0), np.ones(1), float("nan"), float("-inf"), 10**400],
    ids=lambda value: type(value).__name__,
)  # fmt: skip
def test_what_is_no_score_is_named(value, metric):
    task = Strange(score=value, aggregate=value)
    task.metric = metric
    with pytest.raises(DataError, match="'strange'"):
        score_of(task, GOOD, "a")
    with pytest.raises(DataError, match="'strange'"):
        aggregate_of(task, [(GOOD, "a")])


def test_a_score_lies_in_its_metrics_range():
    for metric, good, bad in (("exact", (0, True, 1.0), (0.5, 99)), ("f1", (0, 0.3, 1), (-0.1, 1.1))):
        for value in (*good, *bad):
            task = Strange(score=value)
            task.metric = metric
            if value in good:
                assert score_of(task, GOOD, "a") == float(value)
                continue
            with pytest.raises(DataError, match=f"its metric is {metric}"):
                score_of(task, GOOD, "a")
    assert score_of(Strange(score=np.float32(7.5)), GOOD, "a") == 7.5
    assert score_of(Strange(), GOOD, "a") is None
    assert aggregate_of(Strange(aggregate=1478.2), [(GOOD, "a")]) == 1478.2


def test_what_a_task_says_of_itself_must_be_possible():
    assert wrong_in_task(Strange(), MappingProxyType({})) == ""
    for name, value in (("metric", "bleu"), ("metric", []), ("max_new_tokens", 0), ("max_new_tokens", True),
                        ("max_new_tokens", "4"), ("description", None), ("metric_name", 3)):  # fmt: skip
        task = Strange()
        setattr(task, name, value)
        assert name in wrong_in_task(task, MappingProxyType({}))


def test_a_reason_is_one_line_that_any_file_holds():
    class Mute(Exception):
        def __str__(self):
            raise RuntimeError

    assert reason_of(ValueError("a\n\u2028 b\ud800")) == "ValueError: a b\\ud800"
    assert reason_of(Mute()) == "Mute: it cannot say what"
    assert len(reason_of(ValueError("x" * 1000))) == 300
