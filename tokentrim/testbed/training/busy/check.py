"""The acceptance rule of a model of the busy pictures; `tokentrim.testbed.check` runs it.

What is needed must suffice, and chance must cost little where any part of a large thing answers, much where one patch
does: then a method's loss on coarse, on fine and on long questions says what it drops.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from statistics import mean
from typing import Any, Final, get_args

from rich.table import Table

from tokentrim.contracts.tasks import Split
from tokentrim.testbed.busy.tasks import BusyTask, Grain
from tokentrim.testbed.training.evaluate import mean_scores, oracle, random_order

QUARTER: Final = 0.25  # shares of the visual tokens
NINTH: Final = 0.11
HALF: Final = 0.5
LEAST_FULL: Final = 0.90
LEAST_QUARTER: Final = 0.97  # of the unpruned score, under the oracle
LEAST_NINTH: Final = 0.90
LEAST_HALF_COARSE: Final = 0.85  # of the unpruned score, under random selection
MOST_HALF_FINE: Final = 0.65
MOST_NINTH: Final = 0.90  # of the score of a random half, under a random ninth
_SCORES: Final = ("full", "oracle_quarter", "oracle_ninth", "random_half", "random_ninth", "text_only")


@dataclass(frozen=True)
class BusyResult:
    """Mean scores of one task, 0 to 1; or of the tasks of one grain."""

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
        return self.kept_of(self.oracle_quarter)

    def kept_of(self, score: float) -> float:
        """A score as a share of the unpruned one."""
        return score / self.full if self.full else 0.0

    def complaints(self) -> Iterator[str]:
        """What this task breaks of the rule."""
        if self.full < LEAST_FULL:
            yield f"unpruned {self.full:.1%} is below {LEAST_FULL:.0%}"
        for share, score, least in (
            (QUARTER, self.oracle_quarter, LEAST_QUARTER),
            (NINTH, self.oracle_ninth, LEAST_NINTH),
        ):
            if self.kept_of(score) < least:
                yield f"oracle at {share:.0%} keeps {self.kept_of(score):.1%}, below {least:.0%}"


@dataclass(frozen=True)
class GrainResult(BusyResult):
    """Means over the tasks of one grain, each of which counts the same; `n` is of all together."""

    def complaints(self) -> Iterator[str]:
        """What the grain breaks: chance is judged over its tasks together, since one of them may be harder to guess."""
        half = self.kept_of(self.random_half)
        if self.grain == "coarse" and half < LEAST_HALF_COARSE:
            yield f"random at {HALF:.0%} keeps {half:.1%}, below {LEAST_HALF_COARSE:.0%}"
        if self.grain == "fine" and half > MOST_HALF_FINE:
            yield f"random at {HALF:.0%} keeps {half:.1%}, above {MOST_HALF_FINE:.0%}"
        if self.random_ninth > MOST_NINTH * self.random_half:
            yield f"random at {NINTH:.0%} reaches {self.random_ninth:.1%}, hardly less than at {HALF:.0%}"


def with_grains(results: list[BusyResult]) -> list[BusyResult]:
    """Results of tasks, and behind them the means of every grain that they are of."""
    means: list[BusyResult] = []
    for grain in get_args(Grain):
        tasks = [result for result in results if result.grain == grain]
        if tasks:
            columns = {name: mean(getattr(task, name) for task in tasks) for name in _SCORES}
            means.append(GrainResult(f"mean, {grain}", grain, sum(task.n for task in tasks), **columns))
    return [*results, *means]


def check_busy(model: Any, task: BusyTask, split: Split, n: int) -> BusyResult:
    """Measure one task."""
    oracles = [(oracle, share) for share in (1.0, QUARTER, NINTH)]
    settings = [*oracles, (random_order, HALF), (random_order, NINTH), (oracle, 0.0)]
    scores = mean_scores(model, task, task.samples(split, n), settings)
    return BusyResult(task.name, task.grain, n, **dict(zip(_SCORES, scores, strict=True)))


def busy_table(results: list[BusyResult], title: str) -> Table:
    """Results as a table, in percent."""
    table = Table("task", "grain", title=title)
    oracles = (f"oracle {QUARTER:.0%}", f"oracle {NINTH:.0%}")
    for name in ("unpruned", *oracles, f"random {HALF:.0%}", f"random {NINTH:.0%}", "text only"):
        table.add_column(name, justify="right")
    table.add_column("verdict")
    for r in results:
        scores = (f"{100 * getattr(r, name):.1f}" for name in _SCORES)
        table.add_row(r.task, r.grain, *scores, "; ".join(r.complaints()) or "ok")
    return table
