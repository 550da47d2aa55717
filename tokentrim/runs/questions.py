"""What tasks give, checked where it is given: a task is a stranger's code, and what it returns goes into every file."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from numbers import Real
from typing import Any

from PIL import Image

from tokentrim.contracts.tasks import Evidence, Metric, Sample, Split, Task
from tokentrim.errors import DataError, TokentrimError, UnsupportedError, complaint, reason_of
from tokentrim.loading import describe, load_processor, require_watching
from tokentrim.plugins.loader import registry
from tokentrim.reading import Video


def questions_of(task: Task, split: Split, n: int, *, fewer: bool = False) -> list[Sample]:
    """The first n questions of a split.

    Args:
        task: gives them.
        split: of the task.
        n: how many.
        fewer: whether a split that has not as many will do, unless it has none.

    Raises:
        DataError: when the task gives something else; names the question.
    """
    whom = f"samples() of task {task.name!r}"
    found = _samples(whom, lambda: task.samples(split, n))
    if len(found) < (1 if fewer else n):
        raise DataError(
            complaint(f"task {task.name!r}", f"have {n} questions in its {split} split", len(found), "lower 'samples'")
        )
    if len(found) > n:
        raise DataError(complaint(whom, f"return the first {n} of its {split} split and no more", len(found)))
    if len({sample.id for sample in found}) < len(found):
        raise DataError(complaint(f"ids of questions of task {task.name!r}", "differ", [s.id for s in found]))
    return found


def count_of(task: Task, split: Split) -> int | None:
    """How many questions a split has; None where that is enough for anybody.

    Raises:
        DataError: when the task says something else.
    """
    whom = f"count() of task {task.name!r}"
    try:
        found: Any = task.count(split)
    except TokentrimError:
        raise
    except Exception as cause:
        raise DataError(complaint(whom, "give a number", hint=f"it raised {reason_of(cause)}")) from cause
    if found is not None and (not isinstance(found, int) or found < 0):
        raise DataError(complaint(whom, "be a whole number from 0 on, or None", found))
    return found


def training_of(task: Task, handful: int) -> list[Sample]:
    """A handful of a task's samples to train on.

    Raises:
        DataError: when the task gives something else, or none.
    """
    whom = f"training() of task {task.name!r}"
    found = _samples(whom, lambda: task.training(handful))
    if not found:
        raise DataError(complaint(whom, "return samples to train on", found))
    return found


def _samples(whom: str, give: Callable[[], Any]) -> list[Sample]:
    """The samples that a task gives, each looked at."""
    try:
        found = give()
        listed: list[Any] | None = list(found) if isinstance(found, Sequence) else None
    except TokentrimError:
        raise
    except Exception as cause:
        raise DataError(complaint(whom, "give questions", hint=f"it raised {reason_of(cause)}")) from cause
    if listed is None:
        raise DataError(complaint(whom, "return a list of Sample", found, "put what it makes into a list"))
    for place, sample in enumerate(listed):
        _require_sample(sample, f"sample {place} from {whom}")
    return listed


def require_questions(asked: Iterable[tuple[str, Split, int]], models: Iterable[str] = ()) -> None:
    """Look at every question that a run will ask, before anything runs.

    Args:
        asked: (task's name, split, how many) of each.
        models: which are asked all of them.

    Raises:
        DataError: see :func:`questions_of`.
        UnsupportedError: for a video, when a model takes none.
    """
    watching: str | None = None
    for name, split, n in dict.fromkeys(asked):
        found = questions_of(registry("task").get(name), split, n)
        watching = watching or next((f"{one.id!r} of task {name!r}" for one in found if one.videos), None)
    for model in models if watching else ():
        described = describe(model)
        require_watching(load_processor(described.folder), model, watching or "")
        if not described.adapter.model_types:
            raise UnsupportedError(
                complaint(f"model {model!r}", f"have an adapter of its own, because {watching} is about a video",
                          f"the adapter {described.adapter.name!r}, which serves images alone",
                          "give frames as 'images'")
            )  # fmt: skip


def _require_sample(sample: Any, whom: str) -> None:
    """Raise DataError unless this is a question."""
    if not isinstance(sample, Sample):
        raise DataError(complaint(whom, "be a tokentrim Sample", sample))
    for name in ("id", "question", "answer"):
        require_text(getattr(sample, name), f"{name} of {whom}")
    for name, kind in (("images", Image.Image), ("evidence", Evidence), ("videos", Video)):
        parts: Any = getattr(sample, name)
        if not isinstance(parts, list | tuple) or not all(isinstance(part, kind) for part in parts):
            raise DataError(complaint(f"{name} of {whom}", f"be a tuple of {kind.__name__}", parts))


def require_text(text: Any, whom: str) -> str:
    """A text that UTF-8 can hold.

    Raises:
        DataError: when it is something else, or has half a character in it.
    """
    if not isinstance(text, str):
        raise DataError(complaint(whom, "be text", text))
    try:
        text.encode()
    except UnicodeEncodeError as cause:
        raise DataError(complaint(whom, "be text that UTF-8 can hold", text, str(cause))) from cause
    return text


def score_of(task: Task, sample: Sample, said: str) -> float | None:
    """How good an answer is, by its task.

    Raises:
        DataError: when that is no score.
        Exception: whatever the task raises.
    """
    score: Any = task.score(sample, said)
    return None if score is None else checked_score(score, task.metric, f"score() of task {task.name!r}")


def aggregate_of(task: Task, answered: Sequence[tuple[Sample, str]]) -> float | None:
    """What a task makes of all answers together; None where it leaves that to their mean.

    Raises:
        DataError: when that is no number.
        Exception: whatever the task raises.
    """
    found: Any = task.aggregate(answered) if answered else None
    return None if found is None else checked_score(found, "graded", f"aggregate() of task {task.name!r}")


def checked_score(score: Any, metric: Metric, whom: str) -> float:
    """A score as a number of its metric's range: 0 or 1, a share, or any finite number.

    Raises:
        DataError: when it is none.
    """
    if not isinstance(score, Real):
        raise DataError(complaint(whom, "return a number or None", score, "write float(...)"))
    try:
        value = float(score)
    except OverflowError:
        value = math.inf
    if not math.isfinite(value):
        raise DataError(complaint(whom, "return a finite number or None", score))
    if metric == "exact" and value not in (0.0, 1.0):
        raise DataError(complaint(whom, "be 0 or 1, because its metric is exact", value, "name the metric graded"))
    if metric == "f1" and not 0.0 <= value <= 1.0:
        raise DataError(complaint(whom, "lie in [0, 1], because its metric is f1", value, "name the metric graded"))
    return value
