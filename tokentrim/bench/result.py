"""What a bench found, for people and for files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import median, quantiles
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from rich.table import Table

LEAST_ATTAINED: Final = 0.90
"""Share of the FLOPs-implied speed-up that a strategy's measured one should reach."""
MOST_SELECTION: Final = 0.02
"""Share of its prefill that selecting should take at most."""
DECODE_WITHIN: Final = 0.01
"""How far decoding under ``none`` may be from the untouched model's."""


@dataclass(frozen=True)
class Spread:
    """Median of repeated measurements and their quartiles."""

    median: float
    low: float
    high: float
    n: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Summary of at least one value."""
        if len(values) == 1:
            return cls(values[0], values[0], values[0], 1)
        low, _, high = quantiles(values, n=4, method="inclusive")
        return cls(median(values), low, high, len(values))

    def text(self, scale: float = 1.0, digits: int = 2) -> str:
        """``median ±half the distance of the quartiles``; the median alone where there is one value."""
        middle = f"{self.median * scale:.{digits}f}"
        return middle if self.n == 1 else f"{middle} ±{(self.high - self.low) / 2 * scale:.{digits}f}"


@dataclass(frozen=True)
class BenchRow:
    """One strategy. Ratios to the untouched model are medians over pairs of neighbouring runs.

    Attributes:
        strategy: label, with the solved budget.
        spec: the strategy as a plain dict; None for the untouched model.
        layer_mean_ratio: layer-mean visual tokens that were measured, as a share of unpruned.
        flops_ratio: prefill FLOPs of the language model that were measured, as a share of unpruned.
        prefill_seconds: from the call of ``generate`` to the first new token, vision tower included.
        decode_seconds_per_token: mean over the further tokens of a run.
        selection_seconds: scoring, selecting and gathering within one prefill.
        speed_up: untouched prefill seconds / this strategy's.
        implied_speed_up: the same ratio of FLOPs, vision tower, projector and head counted on both sides.
        decode_ratio: this strategy's decode seconds / untouched.
        peak_bytes: most memory held beyond the weights; None when it was not measured.
    """

    strategy: str
    spec: dict[str, Any] | None
    layer_mean_ratio: float
    flops_ratio: float
    prefill_seconds: Spread
    decode_seconds_per_token: Spread
    selection_seconds: Spread
    speed_up: Spread
    implied_speed_up: float
    decode_ratio: Spread
    peak_bytes: int | None

    @property
    def attained(self) -> float:
        """Measured speed-up as a share of the implied one."""
        return self.speed_up.median / self.implied_speed_up

    @property
    def selection_share(self) -> float:
        """Selection seconds as a share of this strategy's prefill."""
        return self.selection_seconds.median / self.prefill_seconds.median


@dataclass(frozen=True)
class BenchResult:
    """A finished bench.

    Attributes:
        options: what was asked for, as plain data.
        environment: versions, device and threads.
        untouched: the model without tokentrim.
        rows: ``none`` first, then the strategies in the order asked for.
    """

    options: dict[str, Any]
    environment: dict[str, Any]
    untouched: BenchRow
    rows: tuple[BenchRow, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON; seconds and bytes."""
        return {
            "options": self.options,
            "environment": self.environment,
            "untouched": asdict(self.untouched),
            "rows": [
                {**asdict(row), "attained": row.attained, "selection_share": row.selection_share} for row in self.rows
            ],
            "targets": self.targets(),
        }

    def targets(self) -> list[dict[str, Any]]:
        """What each figure should reach, what it reached, and whether that is enough."""
        found: list[dict[str, Any]] = []

        def add(strategy: str, what: str, value: float, wanted: str, met: bool) -> None:
            found.append({"strategy": strategy, "what": what, "value": value, "wanted": wanted, "met": met})

        for row in self.rows:
            if row.spec == {"name": "none"}:
                ratio = row.decode_ratio.median
                wanted = f"{1 - DECODE_WITHIN:.2f}-{1 + DECODE_WITHIN:.2f}"
                add(row.strategy, "decode / untouched", ratio, wanted, abs(ratio - 1) <= DECODE_WITHIN)
                continue
            share = row.attained
            add(row.strategy, "measured / implied speed-up", share, f">= {LEAST_ATTAINED}", share >= LEAST_ATTAINED)
            share = row.selection_share
            add(row.strategy, "selection / prefill", share, f"< {MOST_SELECTION}", share < MOST_SELECTION)
            if row.peak_bytes is not None and self.untouched.peak_bytes:
                share = row.peak_bytes / self.untouched.peak_bytes
                add(row.strategy, "peak / untouched", share, "<= 1", share <= 1)
        return found

    def table(self) -> Table:
        """One line per strategy, for a terminal; below it, what misses its target."""
        from rich.table import Table  # only a terminal needs it

        options, where = self.options, self.environment
        missed = [
            f"{one['strategy']}: {one['what']} is {one['value']:.3f}, wanted {one['wanted']}"
            for one in self.targets()
            if not one["met"]
        ]
        table = Table(
            title=f"{options['geometry']}, batch {options['batch']}, {where['device']}, {where['dtype']}, "
            f"{options['repeats']} repeats: median ± half the distance of the quartiles",
            caption="\n".join(missed) or "every target is met",
            caption_justify="left",
        )
        names = ("strategy", "kept", "prefill ms", "speed-up", "of implied", "selection", "decode ms", "ratio", "MiB")
        for name in names:
            table.add_column(name, justify="left" if name == "strategy" else "right")
        for row in (self.untouched, *self.rows):
            ratios = ("",) * 4
            if row is not self.untouched:
                implied = f"{row.attained:.0%} of {row.implied_speed_up:.2f}"
                ratios = (row.speed_up.text(), implied, f"{row.selection_share:.1%}", row.decode_ratio.text(1, 3))
            table.add_row(
                row.strategy,
                f"{row.layer_mean_ratio:.1%}",
                row.prefill_seconds.text(1000, 1),
                *ratios[:3],
                row.decode_seconds_per_token.text(1000, 1),
                ratios[3],
                "" if row.peak_bytes is None else f"{row.peak_bytes / 2**20:.1f}",
            )
        return table
