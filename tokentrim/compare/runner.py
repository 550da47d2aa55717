"""Running a comparison: cell by cell, each stored when it is finished, then everything rebuilt from what is stored."""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping, Sequence
from contextlib import suppress
from itertools import groupby
from pathlib import Path
from typing import Any

from tokentrim.compare.batches import expected_new_tokens, make_batches
from tokentrim.compare.cells import Cell, ModelTarget, expand, further_text_only, locate, versions
from tokentrim.compare.config import CompareConfig, load_compare
from tokentrim.compare.execute import run_cell, warm_up
from tokentrim.compare.gallery import gallery_of
from tokentrim.compare.progress import Progress, Silent
from tokentrim.compare.report import publish, require_formats
from tokentrim.compare.results import CellResult, ResultsFolder
from tokentrim.compare.summary import Summary, build
from tokentrim.compare.work import Work
from tokentrim.errors import DataError, UnsupportedError, complaint
from tokentrim.loading import Loaded, describe, load_model
from tokentrim.plugins import registry
from tokentrim.sites import Need


def run(
    config: str | Path | Mapping[str, Any] | CompareConfig | None,
    out: str | Path,
    *,
    command: Sequence[str] | None = None,
    progress: Progress | None = None,
    formats: Sequence[str] = (),
) -> Summary:
    """Run a comparison into a folder, or finish one that was stopped.

    Args:
        config: what to compare; None for the configuration that comes with tokentrim.
        out: results folder; cells that it already holds are not run again, failed ones are.
        command: the command line, for the record.
        progress: told what happens.
        formats: which reports to write, of md, csv, json, html and png; all where none is named. The record
            (results.jsonl, summary.json, gallery.json) is always written.

    Returns:
        The summary; its ``failures`` count what went wrong.

    Raises:
        TokentrimError: for bad input, before anything runs.
    """
    require_report_extra()
    wanted = require_formats(formats)
    settings = load_compare(config)
    told = progress or Silent()
    models = [locate(spec) for spec in settings.models]
    cells = expand(settings, models)
    require_evidence(cells)
    written = shlex.join(command) if command else f"tokentrim.compare.run(..., {os.fspath(out)!r})"
    folder = ResultsFolder(Path(out))
    folder.open(settings, {"command": written, "versions": versions()})
    finished = _finished(folder, cells)
    told.start(len(cells), len(finished))
    _run_pending(cells, finished, folder, told)
    # Where a method began to drop tokens may only be known now; text-only has to stand there as well.
    further = further_text_only(settings, cells, finished)
    if further:
        finished |= _finished(folder, further)
        cells += further
        told.start(len(cells), len(finished))
        _run_pending(further, finished, folder, told)
    return _store(settings, models, cells, finished, folder, written, wanted)


def _run_pending(cells: Sequence[Cell], finished: dict[str, CellResult], folder: ResultsFolder, told: Progress) -> None:
    """Run the cells that are not finished, model by model."""
    for target, members in groupby(cells, key=lambda cell: cell.model):
        pending = [cell for cell in members if cell.key not in finished]
        if pending:
            loaded = load_model(target.folder, target.spec.device, target.spec.dtype)
            finished |= _run_model(pending, loaded, folder, told, dict(describe(loaded.model)))


def _finished(folder: ResultsFolder, cells: Sequence[Cell]) -> dict[str, CellResult]:
    """Cells that the folder holds without a failure."""
    found = {cell.key: folder.read(cell) for cell in cells}
    return {key: result for key, result in found.items() if result is not None and not result.failures}


def _run_model(
    cells: Sequence[Cell], loaded: Loaded, folder: ResultsFolder, told: Progress, placement: Mapping[str, str]
) -> dict[str, CellResult]:
    """Run the cells of one model, task by task."""
    done: dict[str, CellResult] = {}
    for _, listed in groupby(cells, key=lambda cell: cell.task.task):
        members = list(listed)
        work = work_of(members[0], loaded)
        warm_up(members[0], work)
        for cell in members:
            result = run_cell(cell, work)
            result.head["placement"] = dict(placement)
            folder.write(cell, result)
            done[cell.key] = result
            if result.failures:
                told.say(f"failed: {cell.where}: {result.failures[0]}")
            told.step(cell.where)
    return done


def work_of(cell: Cell, loaded: Loaded) -> Work:
    """The questions of a cell's task as inputs of its model.

    Raises:
        DataError: when the split has fewer questions.
    """
    task = registry("task").get(cell.task.task)
    samples = task.samples(cell.split, cell.n)
    if len(samples) < cell.n:
        raise DataError(
            complaint(f"task {task.name!r}", f"have {cell.n} questions in its {cell.split} split", len(samples),
                      "lower 'samples'")
        )  # fmt: skip
    batches = make_batches(loaded, samples, cell.batch_size)
    return Work(loaded, task, samples, batches, expected_new_tokens(loaded, samples, cell.max_new_tokens))


def _store(
    config: CompareConfig,
    models: Sequence[ModelTarget],
    cells: Sequence[Cell],
    results: Mapping[str, CellResult],
    folder: ResultsFolder,
    command: str,
    formats: Sequence[str],
) -> Summary:
    """Rebuild everything that is derived from the cells."""
    ordered = [results[cell.key] for cell in cells]
    files = {"results": folder.write_results(ordered)}
    placed = {result.head["model"]: result.head.get("placement") for result in ordered}
    about = {
        "command": command,
        "versions": versions(),
        "config_hash": config.hash,
        "config": config.to_dict(),
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
    data = build(cells, results, about, correction=config.correction)
    return publish(Summary(folder.path, data, files), gallery_of(cells, results), formats)


def require_report_extra() -> None:
    """Raise UnsupportedError unless the libraries of the extra ``report`` are there."""
    missing: list[str] = []
    for name in ("scipy", "matplotlib", "statsmodels"):
        with suppress(ImportError):
            __import__(name)
            continue
        missing.append(name)
    if missing:
        raise UnsupportedError(
            complaint("tokentrim compare", "find scipy, matplotlib and statsmodels", f"no {' and no '.join(missing)}",
                      "pip install 'tokentrim[report]'")
        )  # fmt: skip


def require_evidence(cells: Sequence[Cell]) -> None:
    """Raise UnsupportedError when a method wants to be told what is relevant, and a task does not know."""
    for cell in cells:
        if Need.EVIDENCE in cell.strategy.strategy.needed():
            task = registry("task").get(cell.task.task)
            if any(not sample.evidence for sample in task.samples(cell.split, 1)):
                raise UnsupportedError(
                    complaint(f"method {cell.method!r}", "be told which tokens an answer needs",
                              f"task {cell.task.task!r}, which does not know",
                              "leave the method out, or run it on the testbed's tasks")
                )  # fmt: skip
