"""The acceptance rule of a model of the busy pictures; `tokentrim.testbed.check` runs it.

What is needed must suffice, and chance must cost little where any part of a large thing answers, much where one patch
does: then a method's loss on coarse, on fine and on long questions says what it drops.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from rich.table import Table

from tokentrim.contracts.tasks import Split
from tokentrim.testbed.busy.tasks import BusyTask, Grain
from tokentrim.testbed.training.evaluate import Ranking, mean_score, oracle, random_order

QUARTER: Final = 0.25  # shares of the visual tokens
NINTH: Final = 0.11
HALF: Final = 0.5
LEAST_FULL: Final = 0.90
LEAST_QUARTER: Final = 0.97  # of the unpruned score, under the oracle
LEAST_NINTH: Final = 0.90
LEAST_HALF_COARSE: Final = 0.85  # of the unpruned score, under random selection
MOST_HALF_FINE: Final = 0.65
MOST_NINTH: Final = 0.90  # of the score of a random half, under a random ninth


@dataclass(frozen=True)
class BusyResult:
    """Mean scores of one task, 0 to 1."""

    task: str
    grain: Grain
    n: int
    full: float
    oracle_quarter: float
    oracle_ninth: float
    random_half: float
    random_ninth: float
    text_only: float

    @property
    def kept(self) -> float:
        """Share of the unpruned score that the oracle's quarter keeps."""
        return self._kept(self.oracle_quarter)

    def _kept(self, score: float) -> float:
        return score / self.full if self.full else 0.0

    def complaints(self) -> Iterator[str]:
        """What this task breaks of the rule."""
        if self.full < LEAST_FULL:
            yield f"unpruned {self.full:.1%} is below {LEAST_FULL:.0%}"
        for share, score, least in (
            (QUARTER, self.oracle_quarter, LEAST_QUARTER),
            (NINTH, self.oracle_ninth, LEAST_NINTH),
        ):
            if self._kept(score) < least:
                yield f"oracle at {share:.0%} keeps {self._kept(score):.1%}, below {least:.0%}"
        half = self._kept(self.random_half)
        if self.grain == "coarse" and half < LEAST_HALF_COARSE:
            yield f"random at {HALF:.0%} keeps {half:.1%}, below {LEAST_HALF_COARSE:.0%}"
        if self.grain == "fine" and half > MOST_HALF_FINE:
            yield f"random at {HALF:.0%} keeps {half:.1%}, above {MOST_HALF_FINE:.0%}"
        if self.random_ninth > MOST_NINTH * self.random_half:
            yield f"random at {NINTH:.0%} reaches {self.random_ninth:.1%}, hardly less than at {HALF:.0%}"


def check_busy(model: Any, task: BusyTask, split: Split, n: int) -> BusyResult:
    """Measure one task."""
    samples = task.samples(split, n)

    def score(ranking: Ranking, share: float) -> float:
        return mean_score(model, task, samples, ranking, share)

    return BusyResult(
        task.name,
        task.grain,
        n,
        full=score(oracle, 1.0),
        oracle_quarter=score(oracle, QUARTER),
        oracle_ninth=score(oracle, NINTH),
        random_half=score(random_order, HALF),
        random_ninth=score(random_order, NINTH),
        text_only=score(oracle, 0.0),
    )


def busy_table(results: list[BusyResult], title: str) -> Table:
    """Results as a table, in percent."""
    table = Table("task", "grain", title=title)
    oracles = (f"oracle {QUARTER:.0%}", f"oracle {NINTH:.0%}")
    for name in ("unpruned", *oracles, f"random {HALF:.0%}", f"random {NINTH:.0%}", "text only"):
        table.add_column(name, justify="right")
    table.add_column("verdict")
    for r in results:
        scores = (r.full, r.oracle_quarter, r.oracle_ninth, r.random_half, r.random_ninth, r.text_only)
        table.add_row(r.task, r.grain, *(f"{100 * score:.1f}" for score in scores), "; ".join(r.complaints()) or "ok")
    return table
