"""Running a comparison: cell by cell, each stored when it is finished, then everything rebuilt from what is stored."""

from __future__ import annotations

import os
import shlex
from collections.abc import Generator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokentrim.compare.config import CompareConfig, load_compare
from tokentrim.compare.expand import expand, further_text_only
from tokentrim.compare.folder import ResultsFolder
from tokentrim.compare.gallery import gallery_of
from tokentrim.compare.matching import solve_measured
from tokentrim.compare.report import publish, require_formats
from tokentrim.compare.summary import Summary, build
from tokentrim.compare.timing import time_cells
from tokentrim.contracts.sites import Need
from tokentrim.errors import UnsupportedError, complaint
from tokentrim.executors import Executor, choose
from tokentrim.executors.choosing import DEFAULT
from tokentrim.executors.workplace import job_of, packed
from tokentrim.loading import device_of
from tokentrim.plugins.loader import registry
from tokentrim.progress import Progress, Silent
from tokentrim.runs.cells import Cell, ModelTarget, locate, versions
from tokentrim.runs.questions import questions_of, require_questions
from tokentrim.runs.ranks import ALONE, Ranks, join, started
from tokentrim.runs.results import CellResult, failed

if TYPE_CHECKING:
    from tokentrim.executors.choosing import Source


def run(
    config: str | Path | Mapping[str, Any] | CompareConfig | None,
    out: str | Path,
    *,
    executor: Source | None = None,
    command: Sequence[str] | None = None,
    progress: Progress | None = None,
    formats: Sequence[str] = (),
) -> Summary:
    """Run a comparison into a folder, or finish one that was stopped.

    Under ``torchrun`` every process calls it alike: they share the questions of each cell, the first one writes, and
    all return the same.

    Args:
        config: what to compare; None for the configuration that comes with tokentrim.
        out: results folder; cells that it already holds are not run again, failed ones are.
        executor: where cells are run: a name such as ``"ray"``, a mapping of its name and options, or an executor;
            None for the one that the configuration names, else this process.
        command: the command line, for the record.
        progress: told what happens.
        formats: which reports to write, of md, csv, json, html and png; all where none is named. The record
            (results.jsonl, summary.json, gallery.json) is always written.

    Returns:
        The summary; its ``failures`` count what went wrong.

    Raises:
        TokentrimError: for bad input, before anything runs.
    """
    wanted = require_formats(formats)
    asked = planned(config, executor)
    settings, chosen, models, cells = asked.settings, asked.executor, asked.models, asked.cells
    ranks = join([device_of(model.spec.device) for model in models]) if chosen.in_process else ALONE
    folder = ResultsFolder(Path(out))
    written = shlex.join(command) if command else f"tokentrim.compare.run(..., {os.fspath(out)!r})"
    if ranks.first:
        folder.open(settings, {"command": written, "versions": versions()})
    told = progress if progress is not None and ranks.first else Silent()
    session = _Session(chosen, ranks, folder, told)
    results = session.finished(cells)
    cells = ranks.share(lambda: solve_measured(cells, results, folder, told))
    told.start(len(cells), len(results))
    results |= session.complete([cell for cell in cells if cell.key not in results])
    # Where a method began to drop tokens may only be known now; text-only has to stand there as well.
    further = further_text_only(settings, cells, results)
    if further:
        results |= session.finished(further)
        cells += further
        told.start(len(cells), len(results))
        results |= session.complete([cell for cell in further if cell.key not in results])
    return ranks.share(lambda: _store(settings, models, cells, results, folder, written, chosen, wanted, told))


@dataclass(frozen=True)
class Planned:
    """A comparison that can run, as far as can be known before it does.

    Attributes:
        settings: what it compares.
        executor: runs its cells.
        models: located, not loaded.
        cells: all that are known now.
    """

    settings: CompareConfig
    executor: Executor
    models: list[ModelTarget]
    cells: list[Cell]


def planned(config: str | Path | Mapping[str, Any] | CompareConfig | None, executor: Source | None = None) -> Planned:
    """Look at all that a comparison needs; nothing is loaded, run or written.

    Raises:
        TokentrimError: names what is missing: a library, a model, weights, questions, a device; or does not fit.
    """
    require_report_extra()
    settings = load_compare(config)
    # Under torchrun its own processes take the place of those that a configuration asks for on this machine.
    configured = settings.executor
    chosen = choose(executor, None if started() > 1 and configured and configured.name == DEFAULT else configured)
    models = [locate(spec) for spec in settings.models]
    cells = expand(settings, models)
    require_questions(
        ((cell.task.task, cell.split, cell.n) for cell in cells), [spec.model for spec in settings.models]
    )
    require_evidence(cells)
    chosen.prepare()
    if not chosen.in_process:
        if started() > 1:
            raise UnsupportedError(
                complaint("a comparison under torchrun", "run its cells in torchrun's own processes",
                          chosen.spec(), "start it without torchrun, or leave the executor out")
            )  # fmt: skip
        for cell in cells:
            packed(job_of(cell))  # what cannot travel is noticed before anything is written
    return Planned(settings, chosen, models, cells)


@dataclass(frozen=True)
class _Session:
    """What runs cells and stores what they gave.

    Attributes:
        executor: runs them.
        ranks: this process among those that share their questions.
        folder: keeps them; only the first rank touches it.
        told: hears of each.
    """

    executor: Executor
    ranks: Ranks
    folder: ResultsFolder
    told: Progress

    def finished(self, cells: Sequence[Cell]) -> dict[str, CellResult]:
        """Cells that the folder holds without a failure."""
        found = self.ranks.share(lambda: {cell.key: self.folder.read(cell) for cell in cells})
        return {key: result for key, result in found.items() if result is not None and not result.failures}

    def complete(self, cells: Sequence[Cell]) -> dict[str, CellResult]:
        """Run cells, and store each as soon as it is there."""
        done: dict[str, CellResult] = {}
        by_key = {cell.key: cell for cell in cells}
        jobs = [job_of(cell) for cell in cells]
        jobs = jobs if self.executor.in_process else [packed(job) for job in jobs]
        alone = self.executor.in_process and self.ranks.size == 1
        outcomes = self.executor.run(jobs, self.told.say)
        with ExitStack() as ending:
            if isinstance(outcomes, Generator):  # so that what it began ends, also after an error here
                ending.callback(outcomes.close)
            for outcome in outcomes:
                cell = by_key[outcome.job.key]
                result = outcome.result or failed(cell, outcome.cause or "its executor gave no result")
                result.head["timed_alone"] = alone
                if self.ranks.first:
                    result = self.folder.write(cell, result)
                done[cell.key] = result
                if result.failures:
                    self.told.say(f"failed: {cell.where}: {result.failures[0]}")
                self.told.step(cell.where)
        for cell in cells:
            if cell.key not in done:
                name = self.executor.name
                raise UnsupportedError(complaint(f"executor {name!r}", "yield an outcome of every job", cell.where))
        return done


def _store(
    config: CompareConfig,
    models: Sequence[ModelTarget],
    cells: Sequence[Cell],
    results: Mapping[str, CellResult],
    folder: ResultsFolder,
    command: str,
    executor: Executor,
    formats: Sequence[str],
    told: Progress,
) -> Summary:
    """Rebuild everything that is derived from the cells: before the timing pass, which takes its time, and after it."""
    ordered = [results[cell.key] for cell in cells]
    files = {"results": folder.write_results(ordered)}
    placed = {result.head["model"]: result.head.get("placement") for result in ordered}
    about = {
        "command": command,
        "versions": versions(),
        "config_hash": config.hash,
        "config": config.to_dict(),
        "executor": executor.spec(),
        "models": {
            model.name: {
                "folder": str(model.folder),
                "fingerprint": model.fingerprint,
                "layers": model.shape.n_layers,
                "visual_tokens": model.shape.vision.n_visual if model.shape.vision else None,
                **(placed.get(model.name) or {}),
            }
            for model in models
        },
    }
    gallery = gallery_of(cells, results)

    def published(timings: list[dict[str, Any]]) -> Summary:
        data = build(cells, results, about, timings, config.correction)
        return publish(Summary(folder.path, data, files), gallery, formats)

    def publish_untimed() -> None:
        published([])
        told.say(f"the report without times is in {folder.path}")

    return published(time_cells(config, cells, results, folder, told, publish_untimed))


def require_report_extra() -> None:
    """Raise UnsupportedError unless the libraries of the extra ``report`` are there."""
    missing = [name for name in ("scipy", "matplotlib", "statsmodels") if find_spec(name) is None]
    if missing:
        raise UnsupportedError(
            complaint("tokentrim compare", "find scipy, matplotlib and statsmodels", f"no {' and no '.join(missing)}",
                      "pip install 'tokentrim-vlm[report]'")
        )  # fmt: skip


def require_evidence(cells: Sequence[Cell]) -> None:
    """Raise UnsupportedError when a method wants to be told what is relevant, and a task does not know."""
    for cell in cells:
        if Need.EVIDENCE in cell.strategy.strategy.needed():
            task = registry("task").get(cell.task.task)
            if any(not sample.evidence for sample in questions_of(task, cell.split, 1)):
                raise UnsupportedError(
                    complaint(f"method {cell.method!r}", "be told which tokens an answer needs",
                              f"task {cell.task.task!r}, which does not know",
                              "leave the method out, or run it on the testbed's tasks")
                )  # fmt: skip
