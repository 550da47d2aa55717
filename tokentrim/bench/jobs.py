"""Jobs of a suite: one bench each, how it is run and read back, and its lines on the suite's page."""

from __future__ import annotations

import hashlib
import re
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeAlias, TypeVar

from tokentrim.bench import runner, throughput
from tokentrim.bench.options import BenchOptions
from tokentrim.bench.result import BenchResult, BenchRow
from tokentrim.bench.throughput import ThroughputResult
from tokentrim.progress import Progress

Result = TypeVar("Result", BenchResult, ThroughputResult)


@dataclass(frozen=True)
class BenchJob(ABC, Generic[Result]):
    """One bench of a suite.

    Attributes:
        options: what to measure.
    """

    options: BenchOptions

    kind: ClassVar[type[Any]]
    """What it gives."""
    columns: ClassVar[tuple[str, ...]]
    """Headings of its table."""
    reading: ClassVar[str]
    """What the figures are."""

    @property
    @abstractmethod
    def command(self) -> str:
        """The command that measures the same."""

    @property
    def name(self) -> str:
        """A name for its file: what it is, and a hash of all of it."""
        digest = hashlib.sha256(self.command.encode()).hexdigest()[:8]
        one = self.options
        named = re.sub(r"[^\w.-]+", "-", Path(one.geometry).name)
        parts = [named, f"images-{one.images}", self._batches, f"new-{one.new_tokens}"]
        return "-".join([*parts, *(["compiled"] if one.compile else []), digest])

    @property
    def heading(self) -> str:
        """What its table is headed with."""
        return f"{self.options.geometry}{', compiled decoding' if self.options.compile else ''}"

    @abstractmethod
    def measure(self, progress: Progress | None = None) -> Result:
        """Run it, and tell what happens.

        Raises:
            TokentrimError: when it cannot be run as asked.
        """

    def read(self, file: Path) -> Result:
        """A stored result.

        Raises:
            ResultsError: when the file holds none.
        """
        return self.kind.read(file)

    @abstractmethod
    def lines(self, result: Result) -> list[list[str]]:
        """Cells of its lines, as many as :attr:`columns`."""

    def failed(self, failure: str) -> list[str]:
        """Cells of its line where it failed, as many as :attr:`columns`."""
        cells = [f"{self.options.images} images", *self._setting()[1:], f"failed: {failure}"]
        return [*cells, *[""] * (len(self.columns) - len(cells))]

    @property
    @abstractmethod
    def _batches(self) -> str:
        """The batch, in its file's name."""

    @abstractmethod
    def _setting(self) -> list[str]:
        """The first cells of each of its lines, before the strategy."""


@dataclass(frozen=True)
class TimingJob(BenchJob[BenchResult]):
    """Prefill, decoding and memory against the untouched model."""

    kind: ClassVar[type[Any]] = BenchResult
    columns: ClassVar[tuple[str, ...]] = (
        "visual tokens", "batch", "new", "strategy", "prefill, s", "speed-up", "of implied", "selection", "decode, ms",
        "speed-up", "of implied", "tokens per s", "end to end", "peak, MiB",
    )  # fmt: skip
    reading: ClassVar[str] = """\
Speed-ups are against the untouched model, medians of interleaved pairs; *of implied*: as a share of what FLOPs imply
for prefill (tower, projector and head counted) and bytes read for decoding. *Selection*: its share of the prefill. *End
to end*: speed-up of prefill and all new tokens together."""

    @property
    def command(self) -> str:
        """The command that measures the same."""
        return self.options.command()

    def measure(self, progress: Progress | None = None) -> BenchResult:
        """Run the bench."""
        return runner.run(self.options, progress)

    def lines(self, result: BenchResult) -> list[list[str]]:
        """A line for the untouched model and each strategy."""
        options, found = self.options, list[list[str]]()
        whole = _seconds(result, result.untouched)
        for row in (result.untouched, *result.rows):
            pruned, seconds = row is not result.untouched, _seconds(result, row)
            found.append(
                [
                    *self._setting(), row.strategy,
                    f"{row.prefill_seconds.median:.3f}", row.speed_up.text() if pruned else "",
                    f"{row.attained:.2f}" if pruned else "",
                    f"{row.selection_share:.2%}" if pruned else "",
                    f"{row.decode_seconds_per_token.median * 1000:.1f}",
                    f"{1 / row.decode_ratio.median:.2f}" if pruned else "",
                    f"{row.decode_attained:.2f}" if pruned else "",
                    f"{options.batch * options.new_tokens / seconds:.1f}",
                    f"{whole / seconds:.2f}" if pruned else "",
                    "" if row.peak_bytes is None else f"{row.peak_bytes / 2**20:.0f}",
                ]
            )  # fmt: skip
        return found

    @property
    def _batches(self) -> str:
        return f"batch-{self.options.batch}"

    def _setting(self) -> list[str]:
        return [str(self.options.n_visual), str(self.options.batch), str(self.options.new_tokens)]


def _seconds(result: BenchResult, row: BenchRow) -> float:
    """Seconds of an answer of all new tokens."""
    steps = result.options["new_tokens"] - 1
    return row.prefill_seconds.median + steps * row.decode_seconds_per_token.median


@dataclass(frozen=True)
class ThroughputJob(BenchJob[ThroughputResult]):
    """Tokens per second at the largest batch that fits.

    Attributes:
        gib: memory beyond the weights, GiB.
    """

    gib: float

    kind: ClassVar[type[Any]] = ThroughputResult
    columns: ClassVar[tuple[str, ...]] = ("visual tokens", "new", *throughput.COLUMNS)
    reading: ClassVar[str] = """\
*Largest batch*: rows at once whose peak stays within the memory that the heading names; tokens per second are new
tokens of all rows per second of the whole call, prefill included, each strategy at its own largest batch."""

    @property
    def command(self) -> str:
        """The command that measures the same."""
        return throughput.throughput_command(self.options, self._budget)

    @property
    def heading(self) -> str:
        """With the memory that may be used."""
        return f"{super().heading}, {self.gib:g} GiB beyond the weights"

    def measure(self, progress: Progress | None = None) -> ThroughputResult:
        """Run the bench."""
        return throughput.run_throughput(self.options, self._budget, progress)

    def lines(self, result: ThroughputResult) -> list[list[str]]:
        """A line for the untouched model and each strategy."""
        return [[*self._setting(), *row.cells()] for row in result.rows]

    @property
    def _budget(self) -> int:
        """Bytes."""
        return round(self.gib * 2**30)

    @property
    def _batches(self) -> str:
        return f"throughput-{self.gib:g}"

    def _setting(self) -> list[str]:
        return [str(self.options.n_visual), str(self.options.new_tokens)]


AnyJob: TypeAlias = BenchJob[Any]
