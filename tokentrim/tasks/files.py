"""Tasks in files: every table of questions is one, under its own path, with a metric chosen by ``@``."""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Final

from PIL import Image

from tokentrim.contracts.tasks import Sample, Split, Task
from tokentrim.errors import ConfigError, DataError, UnsupportedError, complaint, suggestion, unknown_name
from tokentrim.plugins.registry import Family
from tokentrim.reading import Video, frame_files
from tokentrim.tasks.metrics import METRICS, AnswerMetric, is_yes_or_no
from tokentrim.tasks.names import FileName, parse
from tokentrim.tasks.questions import Film, Picture, Question, question_of
from tokentrim.tasks.table import read_table, table_file

_DISTRIBUTION: Final = "file"
_SHOWN: Final = 10  # bad lines in one message
_OPEN_PICTURES: Final = 64
_OPEN_FILMS: Final = 16
_PIECE: Final = 1 << 20


class FileTasks(Family):
    """Tasks by the names of their files. A file that has changed since it was read is read again."""

    lasting = False

    def __init__(self) -> None:
        self._known: dict[str, tuple[tuple[int, int], FileTask]] = {}

    def origin(self, rest: str) -> tuple[str, str]:
        """Says that it is a file, and a hash of its questions and pictures.

        Raises:
            TokentrimError: as :meth:`get`.
        """
        return _DISTRIBUTION, self.get(rest).digest

    def get(self, rest: str) -> FileTask:
        """The task of a file.

        Raises:
            DataError: when the file is missing, or lines of it cannot be asked; names each line and the reason.
            ConfigError: when it has no such group, or is not for its metric.
            UnknownNameError: when there is no such metric.
            UnsupportedError: when it cannot be read without a library that is not here.
        """
        name = parse(rest)
        if name is None:
            raise ConfigError(complaint("a task in a file", "read FILE, FILE#GROUP or FILE@METRIC", rest))
        file = table_file(Path(name.path))
        try:
            status = os.stat(file)
            stamp = (status.st_mtime_ns, status.st_size)
        except OSError:
            stamp = (0, 0)  # reading it says what is wrong
        known = self._known.get(rest)
        if known is None or known[0] != stamp:
            known = self._known[rest] = stamp, FileTask(name, file)
        return known[1]


FILES: Final = FileTasks()


class FileTask(Task):
    """The questions of a file.

    Args:
        name: as it was asked for.
        file: the table.

    Raises:
        TokentrimError: see :meth:`FileTasks.get`.
    """

    def __init__(self, name: FileName, file: Path) -> None:
        self.name = str(name)
        questions = _of_group(_questions(file), name.group, file)
        chosen = _metric(name, questions, file)
        _require_fit(chosen, questions, file)
        self._metric, self._file = chosen, file
        self._questions: Mapping[str, Question] = {question.id: question for question in questions}
        self.metric, self.metric_name = chosen.kind, chosen.name
        self.max_new_tokens = chosen.max_new_tokens
        self.description = f"{len(questions)} questions of {file}; {chosen.name}: {chosen.says}"
        self._opened = lru_cache(maxsize=_OPEN_PICTURES)(_opened)
        self._watched = lru_cache(maxsize=_OPEN_FILMS)(_watched)

    @cached_property
    def digest(self) -> str:
        """Short hash of the questions and pictures."""
        return _digest(self._questions.values())

    def count(self, split: Split) -> int:
        """How many questions a split has."""
        return sum(question.split == split for question in self._questions.values())

    def samples(self, split: Split, n: int) -> Sequence[Sample]:
        """The first n questions of a split, in the order of the file.

        Raises:
            DataError: when the file has none of that split, or a picture or video of them cannot be decoded.
            UnsupportedError: when nothing that decodes a video is installed.
        """
        found = [question for question in self._questions.values() if question.split == split]
        if not found:
            raise DataError(
                complaint(f"questions of {self.name!r}", f"be of the {split} split",
                          dict(Counter(question.split for question in self._questions.values())),
                          f"write {split} in the column 'split' of some; without that column all are test questions")
            )  # fmt: skip
        return [self._sample(question) for question in found[:n]]

    def training(self, handful: int) -> Sequence[Sample]:
        """As every task's, of the calibration split.

        Raises:
            UnsupportedError: when the right answers are patterns.
        """
        if self._metric.name == "regex":
            raise UnsupportedError(
                complaint(f"task {self.name!r}", "have answers to learn from, not patterns", "metric regex",
                          "name another metric")
            )  # fmt: skip
        return super().training(handful)

    def _sample(self, question: Question) -> Sample:
        try:
            images = tuple(self._opened(picture) for picture in question.pictures)
            videos = tuple(self._watched(film) for film in question.films)
        except (DataError, UnsupportedError) as cause:
            raise type(cause)(f"{question.place}: {cause}") from cause
        answer = Counter(question.gold.answers).most_common(1)[0][0]
        return Sample(question.id, images, question.text, answer, messages=question.turns, videos=videos)

    def score(self, sample: Sample, prediction: str) -> float:
        """By the metric of the task."""
        return self._metric.score(self._questions[sample.id].gold, prediction)

    def aggregate(self, answered: Sequence[tuple[Sample, str]]) -> float | None:
        """By the metric, where it is one of all answers together."""
        total = self._metric.total
        return total and total([(self._questions[sample.id].gold, said) for sample, said in answered])


def _opened(picture: Picture) -> Image.Image:
    return picture.open()


def _watched(film: Film) -> Video:
    return film.open()


def _questions(file: Path) -> list[Question]:
    """All questions of a file.

    Raises:
        DataError: names every line that is none, up to ten of them.
    """
    questions: list[Question] = []
    problems: list[str] = []
    for row in read_table(file):
        if row.problem:
            problems.append(f"{row.place}: {row.problem}")
            continue
        try:
            questions.append(question_of(row, file.parent))
        except ValueError as cause:
            problems.append(f"{row.place}: {cause}")
    problems += _clashes(questions)
    if not problems and not questions:
        problems.append(f"{file}: there must be at least one question")
    _refuse(problems)
    return questions


def _of_group(questions: list[Question], group: str | None, file: Path) -> list[Question]:
    """The questions of a group; all, where none is named.

    Raises:
        ConfigError: when there is none of it.
    """
    groups = {question.group for question in questions} - {""}
    if group is not None and group not in groups:
        raise ConfigError(
            complaint(f"a group of {file}", "be one of its column 'group'", group, suggestion(group, groups))
        )
    return [question for question in questions if group in (None, question.group)]


def _refuse(problems: Sequence[str]) -> None:
    """Raise DataError where there are problems."""
    if problems:
        more = [f"... and {len(problems) - _SHOWN} more"] if len(problems) > _SHOWN else []
        raise DataError("\n".join((*problems[:_SHOWN], *more)))


def _clashes(questions: Sequence[Question]) -> Iterator[str]:
    """What is wrong between questions: an id twice, a picture in both splits."""
    ids: dict[str, str] = {}
    shown: dict[Path | bytes, Question] = {}
    for question in questions:
        if question.id in ids:
            yield f"{question.place}: the id must be of one question; {question.id!r} is that of {ids[question.id]} too"
        ids[question.id] = question.place
        for picture in (*question.pictures, *question.films):
            for source in _parts(picture):
                other = shown.setdefault(source, question)
                if other.split != question.split:
                    what = "picture" if isinstance(picture, Picture) else "video"
                    frame = f"frame {source.name!r}" if isinstance(source, Path) and source != picture.source else ""
                    yield (
                        f"{question.place}: a {what} must be in one split, or what is calibrated has seen the test; "
                        f"{other.place} ({other.split}) has the same {frame}".rstrip()
                    )
                    break


def _parts(picture: Picture | Film) -> list[Path | bytes]:
    """What of a picture or video may also be another one: itself, and the frames of a folder."""
    frames = frame_files(picture.source) if isinstance(picture, Film) and picture.source.is_dir() else []
    return [picture.source, *frames]


def _metric(name: FileName, questions: Sequence[Question], file: Path) -> AnswerMetric:
    """The metric that is named, or that the questions suggest.

    Raises:
        UnknownNameError: when there is no such metric.
    """
    if name.metric is not None:
        if name.metric not in METRICS:
            error = unknown_name("metric", name.metric, METRICS)
            raise type(error)(f"{file}: {error}")
        return METRICS[name.metric]
    if all(question.gold.choices for question in questions):
        return METRICS["choice"]
    answers = [answer for question in questions for answer in question.gold.answers]
    return METRICS["yes-no" if all(map(is_yes_or_no, answers)) else "exact"]


def _require_fit(metric: AnswerMetric, questions: Sequence[Question], file: Path) -> None:
    """Raise DataError unless the metric can score every question."""
    wrong = ((question, metric.wrong(question.gold)) for question in questions)
    problems = [f"{question.place}: {problem} (metric {metric.name})" for question, problem in wrong if problem]
    _refuse(problems)


def _digest(questions: Iterable[Question]) -> str:
    """Short hash of questions and their pictures."""
    total = hashlib.sha256()
    for question in questions:
        said = [question.id, question.split, question.group, question.text, question.gold, question.turns]
        total.update(json.dumps(said).encode(errors="surrogatepass"))
        for picture in question.pictures:
            total.update(_content(picture.source) if isinstance(picture.source, Path) else _hashed(picture.source))
        for film in question.films:
            files = frame_files(film.source) if film.source.is_dir() else [film.source]
            total.update(f"{film.frames} of {len(files)}".encode())
            total.update(b"".join(map(_content, files)))
    return total.hexdigest()[:16]


def _content(path: Path) -> bytes:
    """Hash of a whole file: two bitmaps of one size differ in the middle, and both would be the same question."""
    status = path.stat()
    return _whole(path, status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=1 << 17)
def _whole(path: Path, size: int, changed: int) -> bytes:
    """The same, remembered until the file changes."""
    del size, changed
    total = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(_PIECE):
            total.update(piece)
    return total.digest()


def _hashed(content: bytes) -> bytes:
    return hashlib.sha256(content).digest()
