"""Suites: many benches from one YAML file, each stored when it is finished, and one page of all."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field

from tokentrim.bench.geometry import GEOMETRIES
from tokentrim.bench.options import BenchOptions, Device, DType
from tokentrim.bench.result import BenchResult
from tokentrim.compare.results import write_atomic, write_json
from tokentrim.config import load_yaml, strategy_from
from tokentrim.errors import ConfigError, ResultsError, complaint
from tokentrim.validation import check
from tokentrim.yaml_reader import Where

PAGE = "index.md"
_FAILED = ".failed.json"


def _listed(value: Any) -> tuple[Any, ...]:
    return tuple(value) if isinstance(value, list | tuple) else (value,)


class Setting(BaseModel):
    """Benches of one kind: every combination of its geometries, numbers of images, batches and new tokens."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    grid: ClassVar[tuple[str, ...]] = ("geometry", "images", "batch", "new_tokens", "compile")

    title: str = Field(default="", description="heading of its results")
    geometry: str | tuple[str, ...] = "scaled"
    images: int | tuple[int, ...] = 1
    batch: int | tuple[int, ...] = 1
    new_tokens: int | tuple[int, ...] = 32
    compile: bool | tuple[bool, ...] = False
    strategies: tuple[Any, ...] = ("st3", "fastv", "random")
    layer_mean_ratio: float | None = 0.25
    prompt_tokens: int = 35
    device: Device = "auto"
    dtype: DType = "auto"
    repeats: int = 3
    threads: int | None = None
    memory: bool = True
    limits: bool = False
    seed: int = 0

    def options(self) -> list[BenchOptions]:
        """Every combination, in the order written."""
        rest = {name: getattr(self, name) for name in type(self).model_fields if name not in (*self.grid, "title")}
        axes = [_listed(getattr(self, name)) for name in self.grid]
        return [
            BenchOptions(**dict(zip(self.grid, values, strict=True)), **rest) for values in itertools.product(*axes)
        ]


class Suite(BaseModel):
    """A suite: settings, run one after the other."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    settings: tuple[Setting, ...] = Field(min_length=1, description="what to measure")


@dataclass(frozen=True)
class Entry:
    """One bench of a suite and what became of it.

    Attributes:
        title: of its setting.
        options: what was measured.
        result: None where it failed.
        failure: why, or "".
    """

    title: str
    options: BenchOptions
    result: BenchResult | None
    failure: str = ""


def load_suite(source: str | Path) -> Suite:
    """Read a suite from YAML.

    Raises:
        ConfigError: names file, line and key.
        UnknownNameError: when a geometry or strategy is not known.
    """
    document = load_yaml(source)
    where, data = document.where, document.data
    if not isinstance(data, Mapping) or not isinstance(data.get("settings"), Sequence):
        raise where.error(complaint("a suite of benches", "hold a list 'settings'", data, "see tokentrim bench --help"))
    settings = [_setting(item, where.at("settings").at(index)) for index, item in enumerate(data["settings"])]
    return check(Suite, {**data, "settings": settings}, "a suite of benches", where)


def _setting(item: Any, where: Where) -> Setting:
    setting = check(Setting, item, "a setting of a suite", where)
    for index, spec in enumerate(setting.strategies):
        strategy_from(spec, where.at("strategies").at(index))
    try:
        setting.options()
    except ConfigError as cause:
        raise where.error(str(cause)) from cause
    return setting


def run_suite(source: str | Path, out: str | Path, *, told: Callable[[str], None] = lambda line: None) -> list[Entry]:
    """Run what is missing of a suite, and write its page.

    A bench that fails (out of memory, say) is recorded with its cause, does not stop the others, and is tried again
    when the suite is run again.

    Args:
        source: YAML file or text.
        out: folder of the results: one JSON file per bench, and ``index.md``.
        told: told what happens.

    Raises:
        TokentrimError: for a bad suite, before anything runs.
        ResultsError: when the folder cannot be written.
    """
    suite, folder = load_suite(source), Path(out)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as cause:
        raise ResultsError(complaint(f"folder {out}", "be writable", hint=str(cause))) from cause
    entries = [
        _entry(setting.title, options, folder, told) for setting in suite.settings for options in setting.options()
    ]
    write_atomic(folder / PAGE, lambda part: part.write_text(page(entries), encoding="utf-8"))
    return entries


def _entry(title: str, options: BenchOptions, folder: Path, told: Callable[[str], None]) -> Entry:
    """One bench: read if it is there, else measured."""
    from tokentrim.bench.runner import run

    file = folder / f"{_key(options)}.json"
    if file.exists():
        return Entry(title, options, BenchResult.read(file))
    told(options.command())
    try:
        result = run(options)
    except Exception as cause:
        failure = f"{type(cause).__name__}: {str(cause).splitlines()[0] if str(cause) else 'no message'}"
        told(f"failed: {failure}")
        write_json(file.with_suffix(_FAILED), {"command": options.command(), "failure": failure})
        return Entry(title, options, None, failure)
    write_json(file, result.to_dict())
    file.with_suffix(_FAILED).unlink(missing_ok=True)
    return Entry(title, options, result)


def _key(options: BenchOptions) -> str:
    """A name for a bench that says what it is, and a hash of all of it."""
    digest = hashlib.sha256(options.command().encode()).hexdigest()[:8]
    parts = [options.geometry, f"images-{options.images}", f"batch-{options.batch}", f"new-{options.new_tokens}"]
    return "-".join([*parts, *(["compiled"] if options.compile else []), digest])


_COLUMNS = (
    "visual tokens", "batch", "new", "strategy", "prefill, s", "speed-up", "of implied", "decode, ms", "speed-up",
    "of implied", "tokens per s", "end to end", "peak, MiB",
)  # fmt: skip


def page(entries: Sequence[Entry]) -> str:
    """The results of a suite as Markdown: a section per title and geometry, a line per bench and strategy."""
    done = [entry.result for entry in entries if entry.result is not None]
    lines = ["# Bench", ""]
    if done:
        where = done[0].environment
        lines += [
            f"{where['device']}, {where['dtype']}, " + ", ".join(f"{k} {v}" for k, v in where["versions"].items())
        ]
    groups = itertools.groupby(entries, key=lambda entry: (entry.title, entry.options.geometry, entry.options.compile))
    for (title, geometry, compiled), members in groups:
        heading = title or geometry
        lines += ["", f"## {heading}: {geometry}{', compiled decoding' if compiled else ''}", ""]
        lines += [f"| {' | '.join(_COLUMNS)} |", f"|{' ---: |' * len(_COLUMNS)}"]
        for entry in members:
            lines += [f"| {' | '.join(cells)} |" for cells in _lines(entry)]
    lines += ["", _READING, ""]
    return "\n".join(lines)


_READING = """\
Speed-ups are against the untouched model, medians of interleaved pairs; *of implied*: as a share of what FLOPs imply
for prefill (tower, projector and head counted) and bytes read for decoding. *End to end*: speed-up of prefill and all
new tokens together."""


def _lines(entry: Entry) -> list[list[str]]:
    options, result = entry.options, entry.result
    if result is None:
        what = [str(options.images), str(options.batch), str(options.new_tokens)]
        return [[f"{what[0]} images", *what[1:], f"failed: {entry.failure}", *[""] * 8]]
    found: list[list[str]] = []
    whole = _seconds(result, result.untouched)
    n_visual = options.images * GEOMETRIES[options.geometry].n_visual
    for row in (result.untouched, *result.rows):
        pruned, seconds = row is not result.untouched, _seconds(result, row)
        found.append(
            [
                str(n_visual), str(options.batch), str(options.new_tokens), row.strategy,
                f"{row.prefill_seconds.median:.3f}", row.speed_up.text() if pruned else "",
                f"{row.attained:.2f}" if pruned else "",
                f"{row.decode_seconds_per_token.median * 1000:.1f}",
                f"{1 / row.decode_ratio.median:.2f}" if pruned else "",
                f"{row.decode_attained:.2f}" if pruned else "",
                f"{options.batch * options.new_tokens / seconds:.1f}",
                f"{whole / seconds:.2f}" if pruned else "",
                "" if row.peak_bytes is None else f"{row.peak_bytes / 2**20:.0f}",
            ]
        )  # fmt: skip
    return found


def _seconds(result: BenchResult, row: Any) -> float:
    """Seconds of one whole answer."""
    steps = result.options["new_tokens"] - 1
    return row.prefill_seconds.median + steps * row.decode_seconds_per_token.median
