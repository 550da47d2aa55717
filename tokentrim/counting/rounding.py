"""The one place where a ratio becomes a count.

Rule: ``count = floor(ratio * n)`` in exact decimal arithmetic. A ratio written ``0.7`` means seven tenths, not the
binary float nearest to it, so ``keep_count(0.8, 5)`` is 4 and ``keep_count(1 - 0.3, 10)`` is not needed: use
:func:`prune_count` where a method's own parameter is the share that goes away.
"""

from __future__ import annotations

from decimal import Decimal
from fractions import Fraction
from functools import lru_cache

from tokentrim.errors import StrategyError, complaint


def exact(ratio: float | Fraction) -> Fraction:
    """``ratio`` as the decimal fraction that its shortest printed form denotes (0.3 -> 3/10)."""
    return ratio if isinstance(ratio, Fraction) else Fraction(Decimal(repr(float(ratio))))


@lru_cache(maxsize=4096)  # a temporal strategy asks it in every step of every layer
def keep_count(ratio: float | Fraction, n: int) -> int:
    """Number of tokens that ``ratio`` of ``n`` keeps: ``floor(ratio * n)``, exactly.

    Args:
        ratio: share kept, in [0, 1].
        n: number of tokens before pruning, >= 0.

    Raises:
        StrategyError: when the ratio lies outside [0, 1] or ``n`` is negative.
    """
    share = exact(ratio)
    if not 0 <= share <= 1:
        raise StrategyError(
            complaint("keep_ratio", "lie in [0, 1]", float(share), "write 0.25 to keep a quarter of the visual tokens")
        )
    if n < 0:
        raise StrategyError(complaint("the token count", "be >= 0", n, "pass the number of visual tokens"))
    return int(share * n)  # int() of a non-negative Fraction is its floor


def prune_count(prune_ratio: float | Fraction, n: int) -> int:
    """Number of tokens *kept* when ``prune_ratio`` of ``n`` goes away: ``floor((1 - prune_ratio) * n)``."""
    return keep_count(1 - exact(prune_ratio), n)


def resolve_count(n: int, keep_ratio: float | None, count: int | None) -> int:
    """The count that a ``keep_ratio`` / ``keep_count`` pair of parameters denotes for ``n`` tokens (never above n)."""
    if count is not None:
        return min(count, n)
    if keep_ratio is None:
        raise StrategyError(
            complaint("a strategy's budget", "give keep_ratio or keep_count", None, "set exactly one of the two")
        )
    return keep_count(keep_ratio, n)
