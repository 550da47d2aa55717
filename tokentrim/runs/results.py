"""What running one cell gave: a head with its costs, and a record per question."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from pydantic import BaseModel, ConfigDict, create_model

from tokentrim.contracts.token_places import GridRecord
from tokentrim.plugins.loader import registry
from tokentrim.runs.cells import Cell
from tokentrim.runs.figures import CLOCKED, FIGURES, TYPES
from tokentrim.runs.kept import KeptRecord
from tokentrim.runs.questions import checked_score

_CLOSED: Final = ConfigDict(strict=True, extra="allow")


@dataclass(frozen=True)
class CellResult:
    """What one cell's file holds.

    Attributes:
        head: the cell's identity and what it cost.
        samples: one record per question.
    """

    head: dict[str, Any]
    samples: list[dict[str, Any]]

    @property
    def failures(self) -> list[str]:
        """Causes of failure, of questions first and then of the cell as a whole."""
        causes = [sample["failure"] for sample in self.samples if sample["failure"]]
        return causes + ([self.head["failure"]] if self.head["failure"] else [])

    def cost(self, name: str) -> Any:
        """A cost of the cell; None for a time that was taken while other cells ran beside it."""
        return None if name in CLOCKED and not self.head.get("timed_alone", True) else self.head.get(name)


class _PictureRecord(KeptRecord):
    cells: GridRecord | None


class _SolvedRecord(BaseModel):
    model_config = _CLOSED

    realised: float | None = None


class _CellHead(BaseModel):
    model_config = _CLOSED

    boundary: int | None
    skipped: str | None
    failure: str | None
    aggregate: float | None = None
    strategies: list[dict[str, Any]] = []
    solved: _SolvedRecord | None = None
    timed_alone: bool = True
    placement: dict[str, Any] | None = None


class _AnswerLine(BaseModel):
    model_config = _CLOSED

    sample: str
    question: str
    answer: str
    prediction: str | None
    score: float | None
    failure: str | None


_COSTS: Final[dict[str, Any]] = {
    figure.name: (TYPES[figure.kind] | None, None)
    for figure in FIGURES
    if figure.source in ("report", "cell") and figure.name not in _CellHead.model_fields
}
_WHOLE_HEAD: Final[type[BaseModel]] = create_model("Head of a cell", __base__=_CellHead, **_COSTS)


def verified(cell: Cell, lines: Sequence[Mapping[str, Any]]) -> CellResult:
    """The result in the lines of a file or of an executor, if it is this cell's and one that a cell can give.

    Raises:
        ValueError: when it is another cell's, or holds what no cell gives.
        DataError: when it holds a score that its metric does not know.
    """
    head, *samples = (dict(line) for line in lines)
    own = {"key": cell.key, **cell.about()}
    for line in (head, *samples):
        wrong = next((name for name, value in own.items() if name not in line or line[name] != value), None)
        if wrong is not None:
            raise ValueError(f"{wrong} must be {own[wrong]!r}, its cell's, and is {line.get(wrong)!r}")
    _WHOLE_HEAD.model_validate(head)
    for record in (head.get("pictures") or {}).values():
        _require_picture(record)
    metric = registry("task").get(cell.task.task).metric
    for line in samples:
        _AnswerLine.model_validate(line)
        if line["failure"] is None and line["prediction"] is None:
            raise ValueError(f"question {line['sample']!r} must have an answer or a failure")
        if line["score"] is not None:
            checked_score(line["score"], metric, f"the score of question {line['sample']!r}")
    if len({line["sample"] for line in samples}) != len(samples):
        raise ValueError("each question must have one line")
    lost = head["skipped"] is not None or head["failure"] is not None
    if len(samples) != cell.n and not (lost and not samples):
        raise ValueError(f"there must be {cell.n} questions, and are {len(samples)}")
    return CellResult(head, samples)


def _require_picture(record: Any) -> None:
    """Raise ValueError unless this is what one question kept."""
    picture = _PictureRecord.model_validate(record)
    if picture.cells is not None and picture.n_visual > picture.cells.n_tokens:
        raise ValueError(f"{picture.n_visual} visual tokens must have a place each, and {picture.cells.n_tokens} have")


def failed(cell: Cell, cause: str) -> CellResult:
    """The result of a cell that gave none: it counts as one failure, and its questions have no answer."""
    about = {"key": cell.key, **cell.about(), "boundary": cell.boundary, "skipped": None}
    strategy = cell.strategy.as_dict()
    return CellResult({**about, "failure": f"{cell.where}: {cause}", "strategy": strategy, "strategies": []}, [])
