"""Statistics of a comparison: intervals of one score, and paired tests of two methods on the same samples.

Scores that are right or wrong get Wilson's interval and McNemar's exact test; graded scores (F1, and any other) get a
percentile bootstrap and a sign-flip permutation test. Where a method ran with several seeds, the bootstrap draws seeds
as well as samples. Every random draw has a fixed seed, so that a report can be rebuilt.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import stats

if TYPE_CHECKING:
    from tokentrim.compare.config import Correction

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
    if metric == "exact" or (metric == "graded" and _right_or_wrong(scores)):
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
    return _percentiles(groups, total)


def crossed(groups: Sequence[NDArray[np.float64]]) -> Estimate:
    """Mean over groups (tasks) of scores that several seeds gave, each group [seeds, samples].

    The interval is a percentile bootstrap that draws seeds, the same ones for every group, and samples of every group.
    One seed is what :func:`bootstrap` sees.
    """
    if groups[0].shape[0] == 1:
        return bootstrap([group[0].tolist() for group in groups])
    rng = np.random.default_rng(_SEED)
    seeds = groups[0].shape[0]
    drawn = rng.multinomial(seeds, [1 / seeds] * seeds, size=_RESAMPLES) / seeds  # [resamples, seeds]
    total: NDArray[np.float64] = np.zeros(_RESAMPLES)
    for group in groups:
        samples = group.shape[1]
        weights = rng.multinomial(samples, [1 / samples] * samples, size=_RESAMPLES) / samples
        total += ((drawn @ group) * weights).sum(axis=1)
    return _percentiles(groups, total)


def _percentiles(groups: Sequence[Any], total: NDArray[np.float64]) -> Estimate:
    """The mean over groups, and the ends of the interval of its resamples, which are given summed over groups."""
    tail = 50 * (1 - CONFIDENCE)
    low, high = np.percentile(total / len(groups), [tail, 100 - tail])
    mean = float(np.mean([np.mean(group) for group in groups]))
    # A resample's rounding may put a bound on the wrong side of the mean of equal scores.
    return Estimate(mean, min(float(low), mean), max(float(high), mean))


def seeds_estimate(scores: NDArray[np.float64], metric: Metric) -> Estimate:
    """Mean score over [seeds, samples] with its interval; no score at all gives NaN."""
    if scores.shape[0] == 1 or not scores.size:
        return estimate(scores.ravel().tolist(), metric)
    return crossed([scores])


def adjusted(p_values: Sequence[float], method: Correction) -> list[float]:
    """p values of one family of tests, corrected for their number.

    Args:
        p_values: of all tests of the family.
        method: holm or bonferroni hold the chance of any false finding, fdr_bh the share of false ones; none leaves
            the values as they are.
    """
    if method == "none" or not p_values:
        return list(p_values)
    from statsmodels.stats.multitest import multipletests  # takes a second to import

    corrected: Any = multipletests(p_values, method=method)[1]
    return [float(value) for value in corrected]


def paired_p(scores: Sequence[float], reference: Sequence[float], metric: Metric) -> float:
    """Two-sided p value that two methods score alike on the same samples.

    McNemar's test needs scores that are right or wrong; means over seeds are neither, and get the permutation test.
    """
    binary = metric != "f1" and _right_or_wrong([*scores, *reference])
    return mcnemar(scores, reference) if binary else sign_flip(scores, reference)


def _right_or_wrong(scores: Sequence[float]) -> bool:
    """Whether all answers are right or wrong; those of a metric that may grade them may be, too."""
    return all(score in (0.0, 1.0) for score in scores)


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
