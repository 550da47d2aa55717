"""What a harness's run really cost, summed over batches, tasks and processes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from tokentrim.engine.report import Report
from tokentrim.runs.figures import REPORTED

_RATIOS: Final = ("n_visual", *REPORTED)
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
    sums: dict[str, float] = field(default_factory=dict[str, float])

    def add(self, report: Report, lengths: Sequence[int], *, pictured: bool, due: bool) -> None:
        """Add one batch.

        Args:
            report: of a session that ran this batch alone.
            lengths: new tokens of every row.
            pictured: whether the rows have visual tokens; all have, or none.
            due: whether the strategy's plan drops any.
        """
        rows = len(lengths)
        self.questions += rows
        self.without_images += 0 if pictured else rows
        self.new_tokens += sum(lengths)
        self.pruning_events += report.pruning_events
        self.due += rows if due else 0
        for name in _RATIOS if pictured else ():
            self.sums[name] = self.sums.get(name, 0.0) + getattr(report, name) * rows
        for name in _TIMES:
            self.sums[name] = self.sums.get(name, 0.0) + getattr(report, name)

    def __add__(self, other: Costs) -> Costs:
        """Both together."""
        sums = {name: self.sums.get(name, 0.0) + other.sums.get(name, 0.0) for name in {*self.sums, *other.sums}}
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
            "prefill_seconds": self._per(self.questions, "prefill_seconds"),
            "decode_seconds_per_token": self._per(decoded, "decode_seconds"),
            "selection_seconds": self._per(self.questions, "selection_seconds"),
            "pruning_due": self.due,
            "pruning_events": self.pruning_events,
        }

    def _per(self, n: int, name: str) -> float | None:
        return self.sums.get(name, 0.0) / n if n > 0 else None


def together(parts: Iterable[dict[str, Costs]]) -> dict[str, Costs]:
    """Costs by task, of several processes."""
    found: dict[str, Costs] = {}
    for part in parts:
        for task, costs in part.items():
            found[task] = found[task] + costs if task in found else costs
    return dict(sorted(found.items()))
