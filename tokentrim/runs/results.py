"""What running one cell gave: a head with its costs, and a record per question."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tokentrim.runs.cells import Cell
from tokentrim.runs.figures import CLOCKED


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


def failed(cell: Cell, cause: str) -> CellResult:
    """The result of a cell that gave none: it counts as one failure, and its questions have no answer."""
    about = {"key": cell.key, **cell.about(), "boundary": cell.boundary, "skipped": None}
    strategy = cell.strategy.as_dict()
    return CellResult({**about, "failure": f"{cell.where}: {cause}", "strategy": strategy, "strategies": []}, [])
