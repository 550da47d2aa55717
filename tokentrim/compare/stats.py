"""Statistics of a comparison: intervals of one score, and paired tests of two methods on the same samples.

Scores that are right or wrong get Wilson's interval and McNemar's exact test; graded scores (F1, and any other) get a
percentile bootstrap and a sign-flip permutation test. Every random draw has a fixed seed, so that a report can be
rebuilt.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import stats

Metric = Literal["exact", "f1", "graded"]
CONFIDENCE: Final = 0.95
_RESAMPLES: Final = 2000
_PERMUTATIONS: Final = 9999
_SEED: Final = 20


class Estimate(NamedTuple):
    """A mean and the ends of its 95 % interval."""

    mean: float
    low: float
    high: float


def estimate(scores: Sequence[float], metric: Metric) -> Estimate:
    """Mean score with its interval; no score at all gives NaN."""
    if not scores:
        return Estimate(float("nan"), float("nan"), float("nan"))
    if metric == "exact":
        return wilson(sum(score == 1.0 for score in scores), len(scores))
    return bootstrap([scores])


def wilson(right: int, n: int) -> Estimate:
    """Share of right answers with Wilson's interval, which stays inside [0, 1] and has a width at 0 % and 100 %."""
    interval: Any = stats.binomtest(right, n).proportion_ci(CONFIDENCE, method="wilson")
    return Estimate(right / n, float(interval.low), float(interval.high))


def bootstrap(groups: Sequence[Sequence[float]]) -> Estimate:
    """Mean over groups (tasks) of each group's mean, with a percentile bootstrap over the samples of every group."""
    rng = np.random.default_rng(_SEED)
    total: NDArray[np.float64] = np.zeros(_RESAMPLES)
    for group in groups:
        values = np.asarray(group, dtype=np.float64)
        total += values[rng.integers(len(values), size=(_RESAMPLES, len(values)))].mean(axis=1)
    tail = 50 * (1 - CONFIDENCE)
    low, high = np.percentile(total / len(groups), [tail, 100 - tail])
    mean = float(np.mean([np.mean(group) for group in groups]))
    # A resample's rounding may put a bound on the wrong side of the mean of equal scores.
    return Estimate(mean, min(float(low), mean), max(float(high), mean))


def paired_p(scores: Sequence[float], reference: Sequence[float], metric: Metric) -> float:
    """Two-sided p value that two methods score alike on the same samples."""
    return mcnemar(scores, reference) if metric == "exact" else sign_flip(scores, reference)


def mcnemar(scores: Sequence[float], reference: Sequence[float]) -> float:
    """McNemar's exact test: among samples that only one of the two gets right, each is as likely to be that one."""
    pairs = list(zip(scores, reference, strict=True))
    gained = sum(mine > theirs for mine, theirs in pairs)
    lost = sum(mine < theirs for mine, theirs in pairs)
    return 1.0 if gained + lost == 0 else float(stats.binomtest(gained, gained + lost).pvalue)


def sign_flip(scores: Sequence[float], reference: Sequence[float]) -> float:
    """Paired permutation test of the mean difference; exact where all sign patterns can be counted."""
    difference = np.asarray(scores, dtype=np.float64) - np.asarray(reference, dtype=np.float64)
    difference = difference[difference != 0]
    if difference.size < 2:  # one difference may as well have had the other sign
        return 1.0
    test: Any = stats.permutation_test(
        (difference,),
        _signed_mean,
        permutation_type="samples",
        n_resamples=_PERMUTATIONS,
        vectorized=True,
        rng=np.random.default_rng(_SEED),
    )
    return float(test.pvalue)


def _signed_mean(values: NDArray[np.float64], axis: int = -1) -> NDArray[np.float64]:
    # Rounded, so that patterns with equal sums count as equal whatever the order of summation.
    return np.round(np.mean(values, axis=axis), 12)


def agreement(answers: Sequence[str], reference: Sequence[str]) -> float:
    """Share of samples with word for word the same answer."""
    if not answers:
        return float("nan")
    return sum(mine.split() == theirs.split() for mine, theirs in zip(answers, reference, strict=True)) / len(answers)
