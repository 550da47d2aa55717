"""What a bench found, for people and for files."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Final, TypeVar

from pydantic import TypeAdapter

from tokentrim.bench.geometry import GEOMETRIES
from tokentrim.bench.limits import Limits
from tokentrim.errors import ResultsError, complaint
from tokentrim.runs.spread import Spread

if TYPE_CHECKING:
    from rich.table import Table

LEAST_ATTAINED: Final = 0.90
"""Share of the FLOPs-implied speed-up that a strategy's measured one should reach."""
MOST_SELECTION: Final = 0.02
"""Share of its prefill that selecting should take at most."""
_SPEED_UP: Final = "measured / implied speed-up"
DECODE_WITHIN: Final = 0.01
"""How far decoding under ``none`` may be from the untouched model's."""


@dataclass(frozen=True)
class BenchRow:
    """One strategy. Ratios to the untouched model are medians over pairs of neighbouring runs.

    Attributes:
        strategy: label, with the solved budget.
        spec: the strategy as a plain dict; None for the untouched model.
        layer_mean_ratio: layer-mean visual tokens that were measured, as a share of unpruned.
        flops_ratio: prefill FLOPs of the language model that were measured, as a share of unpruned.
        kv_mean_ratio: visual cache entries as a share of unpruned, mean over the decode steps that were timed.
        prefill_seconds: from the call of ``generate`` to the first new token, vision tower included.
        decode_seconds_per_token: mean over the further tokens of a run.
        selection_seconds: scoring, selecting and gathering within one prefill.
        speed_up: untouched prefill seconds / this strategy's.
        implied_speed_up: the same ratio of FLOPs, vision tower, projector and head counted on both sides.
        decode_ratio: this strategy's decode seconds / untouched.
        implied_decode_speed_up: ratio of the bytes that a decode step reads: weights once, and every row's cache.
        kernel_floor_seconds: the model's own modules at the same token counts, see :class:`KernelFloor`.
        of_kernel_floor: kernel floor / prefill of the same repeat: what is left of 1 is everything around the kernels.
        kernel_speed_up: kernel floor of the untouched model / this strategy's: the speed-up that is there to be had.
        prefill_limit_seconds: FLOPs / best matrix rate; None when limits were not measured.
        decode_limit_seconds: bytes that a decode step reads / best bandwidth; None likewise.
        peak_bytes: most memory held beyond the weights; None when it was not measured.
    """

    strategy: str
    spec: dict[str, Any] | None
    layer_mean_ratio: float
    flops_ratio: float
    kv_mean_ratio: float
    prefill_seconds: Spread
    decode_seconds_per_token: Spread
    selection_seconds: Spread
    speed_up: Spread
    implied_speed_up: float
    decode_ratio: Spread
    implied_decode_speed_up: float
    kernel_floor_seconds: Spread
    of_kernel_floor: Spread
    kernel_speed_up: Spread
    prefill_limit_seconds: float | None
    decode_limit_seconds: float | None
    peak_bytes: int | None

    @property
    def attained(self) -> float:
        """Measured speed-up as a share of the implied one."""
        return self.speed_up.median / self.implied_speed_up

    @property
    def decode_attained(self) -> float:
        """Measured speed-up of decoding as a share of the one that bytes imply; the untouched model copies besides."""
        return 1 / self.decode_ratio.median / self.implied_decode_speed_up

    @property
    def selection_share(self) -> float:
        """Selection seconds as a share of this strategy's prefill."""
        return self.selection_seconds.median / self.prefill_seconds.median

    @property
    def kernels_attain(self) -> float:
        """Speed-up of the kernels alone as a share of the implied one: what bounds :attr:`attained`."""
        return self.kernel_speed_up.median / self.implied_speed_up

    @property
    def of_prefill_limit(self) -> float | None:
        """Limit of prefill / measured prefill; None when limits were not measured."""
        limit = self.prefill_limit_seconds
        return None if limit is None else limit / self.prefill_seconds.median

    @property
    def of_decode_limit(self) -> float | None:
        """Limit of a decode step / measured step; None when limits were not measured."""
        limit = self.decode_limit_seconds
        return None if limit is None else limit / self.decode_seconds_per_token.median

    def to_dict(self) -> dict[str, Any]:
        """Plain data, derived figures included."""
        return {**asdict(self), **{name: getattr(self, name) for name in _DERIVED}}


_DERIVED: Final = (
    "attained",
    "decode_attained",
    "selection_share",
    "kernels_attain",
    "of_prefill_limit",
    "of_decode_limit",
)
SPREADS: Final = tuple(one.name for one in fields(BenchRow) if one.type == "Spread")
"""What is measured once per repeat."""


Kind = TypeVar("Kind", bound="StoredBench")


@dataclass(frozen=True)
class StoredBench:
    """A finished bench.

    Attributes:
        command: what measures the same again.
        options: what was asked for, as plain data.
        environment: versions, device and threads.
    """

    command: str
    options: dict[str, Any]
    environment: dict[str, Any]

    whom: ClassVar[str]
    """What a file of it is, for messages."""
    remedy: ClassVar[str]
    """What to do about a file that is none."""

    @classmethod
    def read(cls: type[Kind], path: str | Path) -> Kind:
        """What :meth:`to_dict` gave, from a JSON file.

        Raises:
            ResultsError: when the file is missing, or is not such a bench of this version.
        """
        try:
            found = TypeAdapter(cls).validate_json(Path(path).read_bytes())
            if found.options["geometry"] not in GEOMETRIES and "sizes" not in found.environment:
                raise KeyError(found.options["geometry"])
        except (OSError, ValueError, KeyError) as cause:
            raise ResultsError(complaint(f"file {path}", f"be {cls.whom}", repr(cause), cls.remedy)) from cause
        return found

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON; seconds, bytes and FLOPs, and tokens per second."""
        return asdict(self)


@dataclass(frozen=True)
class BenchResult(StoredBench):
    """A finished bench of prefill and decoding.

    Attributes:
        untouched: the model without tokentrim.
        rows: ``none`` first, then the strategies in the order asked for.
        limits: the machine's rates; None when they were not measured.
    """

    whom: ClassVar[str] = "a result of a bench"
    remedy: ClassVar[str] = "write it with: tokentrim bench --json > FILE"

    untouched: BenchRow
    rows: tuple[BenchRow, ...]
    limits: Limits | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON; seconds, bytes and FLOPs."""
        return {
            **super().to_dict(),
            "limits": self.limits and self.limits.to_dict(),
            "untouched": self.untouched.to_dict(),
            "rows": [row.to_dict() for row in self.rows],
            "targets": self.targets(),
        }

    def targets(self) -> list[dict[str, Any]]:
        """What each figure should reach, what it reached, and whether that is enough.

        Where ``wanted`` and ``met`` are None the figure is information: it says what a shortfall consists of.
        """
        return [{"strategy": row.strategy, **figure} for row in self.rows for figure in self._figures(row)]

    def _figures(self, row: BenchRow) -> list[dict[str, Any]]:
        """The targets of one row, and what explains them."""
        found: list[dict[str, Any]] = []

        def add(what: str, value: float, wanted: str | None = None, met: bool | None = None) -> None:
            found.append({"what": what, "value": value, "wanted": wanted, "met": met})

        if row.spec == {"name": "none"}:
            ratio = row.decode_ratio.median
            wanted = f"{1 - DECODE_WITHIN:.2f}-{1 + DECODE_WITHIN:.2f}"
            add("decode / untouched", ratio, wanted, abs(ratio - 1) <= DECODE_WITHIN)
            add("of kernel floor", row.of_kernel_floor.median)
            return found
        add(_SPEED_UP, row.attained, f">= {LEAST_ATTAINED}", row.attained >= LEAST_ATTAINED)
        add("kernels alone / implied speed-up", row.kernels_attain)
        add("of kernel floor", row.of_kernel_floor.median)
        add("selection / prefill", row.selection_share, f"< {MOST_SELECTION}", row.selection_share < MOST_SELECTION)
        if row.peak_bytes is not None and self.untouched.peak_bytes:
            share = row.peak_bytes / self.untouched.peak_bytes
            add("peak / untouched", share, "<= 1", share <= 1)
        return found

    def missed(self) -> list[str]:
        """One line per target that is not met; a speed-up's line says what the kernels alone reach."""
        lines: list[str] = []
        for row in self.rows:
            for one in self._figures(row):
                if one["met"] is not False:
                    continue
                line = f"{row.strategy}: {one['what']} is {one['value']:.3f}, wanted {one['wanted']}"
                if one["what"] == _SPEED_UP:
                    line += (
                        f"; the kernels alone reach {row.kernels_attain:.3f}, and are {row.of_kernel_floor.median:.3f} "
                        f"of this prefill ({self.untouched.of_kernel_floor.median:.3f} of the untouched one)"
                    )
                lines.append(line)
        return lines

    def table(self) -> Table:
        """One line per strategy, for a terminal; below it, what misses its target."""
        from rich.table import Table  # only a terminal needs it

        options, where = self.options, self.environment
        table = Table(
            title=f"{options['geometry']}, batch {options['batch']}, {where['device']}, {where['dtype']}, "
            f"{options['repeats']} repeats: median ± half the distance of the quartiles",
            caption="\n".join([*self._limit_lines(), *self.uncounted(), *(self.missed() or ["every target is met"])]),
            caption_justify="left",
        )
        names = ("strategy", "kept", "prefill ms", "speed-up", "of implied", "of floor", "selection", "decode ms")
        limit_names = ("of limits",) if self.limits else ()
        for name in (*names, "ratio", "MiB", *limit_names):
            table.add_column(name, justify="left" if name == "strategy" else "right")
        for row in (self.untouched, *self.rows):
            pruned = row is not self.untouched
            table.add_row(
                row.strategy,
                f"{row.layer_mean_ratio:.1%}",
                row.prefill_seconds.text(1000, 1),
                row.speed_up.text() if pruned else "",
                f"{row.attained:.0%} of {row.implied_speed_up:.2f}" if pruned else "",
                f"{row.of_kernel_floor.median:.0%}",
                f"{row.selection_share:.1%}" if pruned else "",
                row.decode_seconds_per_token.text(1000, 1),
                row.decode_ratio.text(1, 3) if pruned else "",
                "" if row.peak_bytes is None else f"{row.peak_bytes / 2**20:.1f}",
                *([f"{row.of_prefill_limit:.0%}, {row.of_decode_limit:.0%}"] if self.limits else []),
            )
        return table

    def uncounted(self) -> list[str]:
        """What the figures that FLOPs imply leave out."""
        return [reason] if (reason := self.environment.get("uncounted")) else []

    def _limit_lines(self) -> list[str]:
        """The machine's rates, where they were measured."""
        limits = self.limits
        if limits is None:
            return []
        return [
            f"limits (of prefill, of a decode step): {limits.matrix_rate / 1e9:.0f} GFLOP/s, "
            f"{limits.bandwidth / 1e9:.1f} GB/s"
        ]
