"""Suites: many benches from one YAML file, each stored when it is finished, and one page of all."""

from __future__ import annotations

import itertools
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field

from tokentrim.bench.jobs import AnyJob, ThroughputJob, TimingJob
from tokentrim.bench.options import BenchOptions
from tokentrim.bench.result import BenchResult
from tokentrim.bench.throughput import ThroughputResult
from tokentrim.config.specs import load_yaml, strategy_from
from tokentrim.config.validation import check
from tokentrim.config.yaml_reader import Where
from tokentrim.contracts.load_options import LoadOptions
from tokentrim.errors import ConfigError, complaint
from tokentrim.progress import Progress, Silent, duration
from tokentrim.runs.files import make_folder, write_json, write_text

PAGE = "index.md"
_FAILED = ".failed.json"


def _listed(value: Any) -> tuple[Any, ...]:
    return tuple(value) if isinstance(value, list | tuple) else (value,)


class Setting(LoadOptions):
    """Benches of one kind: every combination of its geometries, numbers of images, batches and new tokens.

    With ``throughput``, each is a throughput bench, which finds its own batches.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    grid: ClassVar[tuple[str, ...]] = ("geometry", "images", "batch", "new_tokens", "compile")
    without_throughput: ClassVar[tuple[str, ...]] = ("batch", "memory", "limits")

    title: str = Field(default="", description="heading of its results")
    geometry: str | tuple[str, ...] = "scaled"
    images: int | tuple[int, ...] = 1
    batch: int | tuple[int, ...] = 1
    new_tokens: int | tuple[int, ...] = 32
    compile: bool | tuple[bool, ...] = False
    strategies: tuple[Any, ...] = ("st3", "fastv", "random")
    layer_mean_ratio: float | None = 0.25
    prompt_tokens: int = 35
    repeats: int = 3
    threads: int | None = None
    memory: bool = True
    limits: bool = False
    seed: int = 0
    throughput: float | None = Field(
        default=None, gt=0, description="GiB beyond the weights: tokens per second at the largest batch that fits"
    )

    def jobs(self) -> list[AnyJob]:
        """A bench for every combination, in the order written."""
        gib = self.throughput
        return [TimingJob(one) if gib is None else ThroughputJob(one, gib) for one in self.options()]

    def options(self) -> list[BenchOptions]:
        """Every combination, in the order written."""
        apart = (*self.grid, "title", "throughput")
        rest = {name: getattr(self, name) for name in type(self).model_fields if name not in apart}
        axes = [_listed(getattr(self, name)) for name in self.grid]
        return [
            BenchOptions(**dict(zip(self.grid, values, strict=True)), **rest) for values in itertools.product(*axes)
        ]


class Suite(BaseModel):
    """A suite: settings, run one after the other."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    settings: tuple[Setting, ...] = Field(min_length=1, description="what to measure")


@dataclass(frozen=True)
class SuiteEntry:
    """One bench of a suite and what became of it.

    Attributes:
        title: of its setting.
        job: what was measured.
        result: None where it failed.
        failure: why, or "".
    """

    title: str
    job: AnyJob
    result: BenchResult | ThroughputResult | None
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
    unused = [name for name in Setting.without_throughput if name in setting.model_fields_set]
    if setting.throughput is not None and unused:
        raise where.at(unused[0]).error(
            complaint(f"{unused[0]} of a setting with throughput", "be left out", getattr(setting, unused[0]),
                      "such a bench finds each strategy's largest batch and measures its memory")
        )  # fmt: skip
    for index, spec in enumerate(setting.strategies):
        strategy_from(spec, where.at("strategies").at(index))
    try:
        setting.options()
    except ConfigError as cause:
        raise where.error(str(cause)) from cause
    return setting


def run_suite(source: str | Path, out: str | Path, *, progress: Progress | None = None) -> list[SuiteEntry]:
    """Run what is missing of a suite, and write its page.

    A bench that fails (out of memory, say) is recorded with its cause, does not stop the others, and is tried again
    when the suite is run again.

    Args:
        source: YAML file or text.
        out: folder of the results: one JSON file per bench, and ``index.md``.
        progress: told what happens, of each bench anew.

    Raises:
        TokentrimError: for a bad suite, before anything runs.
        ResultsError: when the folder cannot be written.
    """
    suite, folder = load_suite(source), Path(out)
    make_folder(folder)
    told = Silent() if progress is None else progress
    asked = [(setting.title, job) for setting in suite.settings for job in setting.jobs()]
    entries: list[SuiteEntry] = []
    begin, measured = time.monotonic(), 0
    due = sum(not _file(job, folder).exists() for _, job in asked)
    for title, job in asked:
        if not _file(job, folder).exists():
            each = (time.monotonic() - begin) / max(measured, 1)
            left = f", about {duration(each * (due - measured))} left" if measured else ""
            measured += 1
            told.say(f"bench {measured} of {due}{left}: {job.command}")
        entries.append(_entry(title, job, folder, told))
    write_text(folder / PAGE, page(entries))
    return entries


def _file(job: AnyJob, folder: Path) -> Path:
    """Where a bench's result lies."""
    return folder / f"{job.name}.json"


def _entry(title: str, job: AnyJob, folder: Path, told: Progress) -> SuiteEntry:
    """One bench: read if it is there, else measured."""
    file = _file(job, folder)
    failures = folder / f"{job.name}{_FAILED}"
    if file.exists():
        return SuiteEntry(title, job, job.read(file))
    try:
        result = job.measure(told)
    except Exception as cause:
        failure = f"{type(cause).__name__}: {str(cause).splitlines()[0] if str(cause) else 'no message'}"
        told.say(f"failed: {failure}")
        write_json(failures, {"command": job.command, "failure": failure})
        return SuiteEntry(title, job, None, failure)
    write_json(file, result.to_dict())
    failures.unlink(missing_ok=True)
    return SuiteEntry(title, job, result)


def page(entries: Sequence[SuiteEntry]) -> str:
    """The results of a suite as Markdown: a section per title and geometry, a line per bench and strategy."""
    done = [entry.result for entry in entries if entry.result is not None]
    lines = ["# Bench", ""]
    if done:
        where = done[0].environment
        lines += [
            f"{where['device']}, {where['dtype']}, " + ", ".join(f"{k} {v}" for k, v in where["versions"].items())
        ]
    for (title, heading), members in itertools.groupby(entries, key=lambda one: (one.title, one.job.heading)):
        section = list(members)
        columns = section[0].job.columns
        lines += ["", f"## {title or section[0].job.options.geometry}: {heading}", ""]
        lines += [f"| {' | '.join(columns)} |", f"|{' ---: |' * len(columns)}"]
        lines += [f"| {' | '.join(cells)} |" for entry in section for cells in _lines(entry)]
    for reading in dict.fromkeys(entry.job.reading for entry in entries):
        lines += ["", reading]
    return "\n".join([*lines, ""])


def _lines(entry: SuiteEntry) -> list[list[str]]:
    return [entry.job.failed(entry.failure)] if entry.result is None else entry.job.lines(entry.result)
