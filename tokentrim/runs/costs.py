"""What answers really cost, summed over batches, tasks and processes."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import reduce
from typing import Any, Final

from tokentrim.engine.report import Report
from tokentrim.runs.figures import REPORTED

_RATIOS: Final = ("n_visual", *REPORTED)
"""Attributes of a session's report that are the same for every row of its batch."""
_TIMES: Final = ("prefill_seconds", "decode_seconds", "selection_seconds")


@dataclass
class Costs:
    """Sums over questions; :meth:`figures` are their means.

    Attributes:
        questions: questions answered.
        without_images: those of them that have no image, which are in no ratio.
        new_tokens: generated tokens, each answer to its own end.
        pruning_events: as the sessions counted them.
        due: questions of which the strategy's plan drops visual tokens.
        sums: of ratios over questions with images, and of seconds.
    """

    questions: int = 0
    without_images: int = 0
    new_tokens: int = 0
    pruning_events: int = 0
    due: int = 0
    sums: defaultdict[str, float] = field(default_factory=lambda: defaultdict[str, float](float))

    def add(
        self, report: Report, lengths: Sequence[int], *, due: bool, pictured: bool = True,
        ratios: Sequence[Mapping[str, float]] = (),
    ) -> None:  # fmt: skip
        """Add one batch.

        Args:
            report: of a session that ran this batch alone.
            lengths: new tokens of every row.
            due: whether the strategy's plan drops any visual tokens.
            pictured: whether the rows have visual tokens; all have, or none. Without, they are in no ratio.
            ratios: of each row what it has otherwise than the report says, by name.
        """
        rows = len(lengths)
        self.questions += rows
        self.without_images += 0 if pictured else rows
        self.new_tokens += sum(lengths)
        self.pruning_events += report.pruning_events
        self.due += rows if due else 0
        means = {name: getattr(report, name) for name in _RATIOS}
        for own in ratios or [{}] * rows if pictured else ():
            for name in _RATIOS:
                self.sums[name] += own.get(name, means[name])
        for name in _TIMES:
            self.sums[name] += getattr(report, name)

    def __add__(self, other: Costs) -> Costs:
        """Both together."""
        sums = defaultdict[str, float](float, self.sums)
        for name, value in other.sums.items():
            sums[name] += value
        return Costs(
            self.questions + other.questions,
            self.without_images + other.without_images,
            self.new_tokens + other.new_tokens,
            self.pruning_events + other.pruning_events,
            self.due + other.due,
            sums,
        )

    def figures(self) -> dict[str, Any]:
        """Means over questions with images (ratios, tokens) and over all (seconds, lengths), as plain data."""
        pictured = self.questions - self.without_images
        decoded = self.new_tokens - self.questions
        return {
            "questions": self.questions,
            "without_images": self.without_images,
            **{name: self.sums[name] / pictured if pictured else None for name in _RATIOS},
            "new_tokens": self.new_tokens / self.questions if self.questions else None,
            "prefill_seconds": self.sums["prefill_seconds"] / self.questions if self.questions else None,
            "decode_seconds_per_token": self.sums["decode_seconds"] / decoded if decoded else None,
            "selection_seconds": self.sums["selection_seconds"] / self.questions if self.questions else None,
            "pruning_due": self.due,
            "pruning_events": self.pruning_events,
        }


def total(costs: Iterable[Costs]) -> Costs:
    """All of them in one."""
    return reduce(Costs.__add__, costs, Costs())


def together(parts: Iterable[dict[str, Costs]]) -> dict[str, Costs]:
    """Costs by task, of several processes."""
    listed = list(parts)
    tasks = sorted({task for part in listed for task in part})
    return {task: total(part[task] for part in listed if task in part) for task in tasks}
