"""Several runs as one report: refused where what may change a score differs."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, Final

from tokentrim.compare.gallery import SCHEMA, Gallery
from tokentrim.compare.readback import KNOWN, PastRun
from tokentrim.errors import ResultsError, complaint
from tokentrim.runs.figures import CHARTED, Row
from tokentrim.runs.specs import digest

KINDS: Final = ("models", "tasks", "versions", "placement", "statistics")
_VERSIONS: Final = ("tokentrim", "torch", "transformers")
_PLACEMENT: Final = ("device", "dtype", "attention")


_Merged = dict[str, dict[tuple[Any, ...], Row]]
"""Rows of several runs so far, by part of the summary, each once."""


def merge(runs: Sequence[PastRun], allowed: Collection[str], command: str) -> tuple[dict[str, Any], Gallery]:
    """Several runs as the content of one ``summary.json`` and one ``gallery.json``.

    Args:
        runs: at least one.
        allowed: kinds of differences to report instead of to refuse, of ``KINDS``.
        command: the command line, for the record.

    Raises:
        ResultsError: when the runs differ in what may change a score, and were not allowed to.
    """
    differing = list(differences(runs))
    refused = [(kind, text) for kind, text in differing if kind not in allowed]
    if refused:
        kinds = " ".join(f"--allow-different {kind}" for kind in dict.fromkeys(kind for kind, _ in refused))
        said = "; ".join(text for _, text in refused)
        raise ResultsError(
            complaint("results that stand in one report", "come from comparable runs",
                      hint=f"{said}. Run them alike, or add {kinds}: the report then says so on top")
        )  # fmt: skip
    rows: _Merged = {part: {} for part in ("cells", "pooled", "overall", "timings", "skipped")}
    gallery: Gallery = {"schema": SCHEMA, "images": {}, "questions": []}
    for run in runs:
        labels = _labels(run, rows)
        for part, found in rows.items():
            for row in run.data[part]:
                labelled = {**row, "method": labels[row["method"]]}
                found.setdefault(_row_key(labelled), labelled)
        _add_questions(run, labels, gallery)
    data: dict[str, Any] = {key: value for run in runs for key, value in _others(run, runs)}
    data |= {
        "command": command,
        "config_hash": digest([run.data["config_hash"] for run in runs]),
        "versions": _joined([(run.name, run.data["versions"]) for run in runs]),
        "config": _common(runs),
        "models": _models(runs),
        **{part: list(found.values()) for part, found in rows.items()},
        "matched_by": {
            row["method"]: row["matched_by"] for part in ("cells", "skipped") for row in rows[part].values()
        },
        "seeds": sorted({seed for run in runs for seed in run.data["seeds"]}),
        "correction": ", ".join(dict.fromkeys(run.data["correction"] for run in runs)),
        "failures": sum(row["failures"] for row in rows["cells"].values()),
        "first_failure": next((run.data["first_failure"] for run in runs if run.data["first_failure"]), None),
        "notes": list(
            dict.fromkeys(
                [
                    "results of several runs: p values, corrected or not, are of each run by itself",
                    "times of different runs do not compare",
                    *(note for run in runs for note in run.data["notes"]),
                ]
            )
        ),
        "sources": [
            {"name": run.name, "config_hash": run.data["config_hash"], "command": run.data["command"]} for run in runs
        ],
        "differences": [text for _, text in differing],
    }
    return data, gallery


def differences(runs: Sequence[PastRun]) -> Iterator[tuple[str, str]]:
    """(kind, sentence) for all that may change a score and is not the same in every run."""
    for model in dict.fromkeys(name for run in runs for name in run.data["models"]):
        own = [(run.name, run.data["models"][model]) for run in runs if model in run.data["models"]]
        yield from _differing("models", f"fingerprint of model {model!r}",
                              [(name, about.get("fingerprint")) for name, about in own])  # fmt: skip
        for key in _PLACEMENT:
            yield from _differing("placement", f"{key} of {model!r}", [(name, about.get(key)) for name, about in own])
    yield from _differing("tasks", "split", [(run.name, run.data["config"].get("split")) for run in runs])
    yield from _differing("tasks", "tasks", [(run.name, _asked(run)) for run in runs])
    for name in _VERSIONS:
        yield from _differing("versions", name, [(run.name, run.data["versions"].get(name)) for run in runs])
    yield from _differing("statistics", "correction of p values", [(run.name, run.data["correction"]) for run in runs])
    batches = [(run.name, run.data["config"].get("batch_size")) for run in runs]
    yield from _differing("placement", "batch size", batches)


def _asked(run: PastRun) -> str:
    """Tasks with their numbers of questions and limits, in one order."""
    config = run.data["config"]
    found: list[str] = []
    for task in config.get("tasks", []):
        limit = task.get("max_new_tokens") or config.get("max_new_tokens")
        text = f"{task.get('task')} x {task.get('samples') or config.get('samples')}"
        found.append(text if limit is None else f"{text} (at most {limit} new tokens)")
    return ", ".join(sorted(found))


def _differing(kind: str, what: str, values: Sequence[tuple[str, Any]]) -> Iterator[tuple[str, str]]:
    if len({str(value) for _, value in values}) > 1:
        said = " against ".join(f"{value} in {name}" for name, value in values)
        yield kind, f"{what}: {said}"


def _row_key(row: Mapping[str, Any]) -> tuple[Any, ...]:
    """What tells a row of cells, or of means, from the others of its report."""
    names = ("method", "boundary", "model", "task", "metric", "budget_requested", "matched_by", "seed")
    return tuple(row.get(name) for name in names)


def _labels(run: PastRun, rows: _Merged) -> dict[str, str]:
    """The label of every method of a run: its own, or one with the run's name where another run's means another thing.

    Methods that ran in both with the same result, such as the controls, stay one.
    """
    clashing: set[str] = set()
    for kind in ("cells", "overall"):
        earlier = rows[kind]
        strategies = {row["method"]: (row.get("strategy") or {}).get("name") for row in earlier.values()}
        for row in run.data[kind]:
            same = earlier.get(_row_key(row))
            if same is not None and _compared(same) != _compared(row):
                clashing.add(row["method"])
            before = strategies.get(row["method"])
            if before is not None and before != (row.get("strategy") or {}).get("name"):
                clashing.add(row["method"])
    methods = dict.fromkeys(row["method"] for kind in ("cells", "skipped") for row in run.data[kind])
    return {method: f"{method} · {run.name}" if method in clashing else method for method in methods}


def _compared(result: Mapping[str, Any]) -> tuple[Any, ...]:
    """The parts of a result that say whether it is the same thing, measured again."""
    names = ("strategy", "control", "tasks", "n", "accuracy", "agreement", *CHARTED)
    return tuple(json.dumps(result.get(name), sort_keys=True) for name in names)


def _add_questions(run: PastRun, labels: Mapping[str, str], gallery: Gallery) -> None:
    """Add a run's pictures: methods to the questions that are there, and new questions."""
    used = {question["images"] for question in run.gallery["questions"]}
    gallery["images"] |= {name: images for name, images in run.gallery["images"].items() if name in used}
    for question in run.gallery["questions"]:
        about = {key: question[key] for key in ("model", "task", "sample", "question", "answer")}
        known = (found for found in gallery["questions"] if about.items() <= found.items())
        target = next(known, None)
        if target is None:
            target = {**question, "cells": [], "methods": []}
            gallery["questions"].append(target)
        there = {_line_key(line) for line in target["methods"]}
        for line in question["methods"]:
            grid = question["cells"][line["cells"]]
            if grid not in target["cells"]:
                target["cells"].append(grid)
            label = labels.get(line["method"], line["method"])
            labelled = {**line, "method": label, "cells": target["cells"].index(grid)}
            if _line_key(labelled) not in there:
                target["methods"].append(labelled)


def _line_key(line: Mapping[str, Any]) -> tuple[Any, ...]:
    return line["method"], line["budget_requested"], line.get("matched_by"), line["seed"], line["boundary"]


def _joined(named: Sequence[tuple[str, Mapping[str, Any]]]) -> dict[str, str]:
    """Values by key; where runs differ, each with the run's name."""
    joined: dict[str, str] = {}
    for key in dict.fromkeys(key for _, values in named for key in values):
        found = {name: values.get(key) for name, values in named}
        distinct = set(map(str, found.values()))
        each = ", ".join(f"{value} ({name})" for name, value in found.items())
        joined[key] = str(next(iter(found.values()))) if len(distinct) == 1 else each
    return joined


def _models(runs: Sequence[PastRun]) -> dict[str, dict[str, Any]]:
    """Every model with what is said of it; where runs differ, each with the run's name."""
    names = dict.fromkeys(name for run in runs for name in run.data["models"])
    found: dict[str, dict[str, Any]] = {}
    for name in names:
        own = [(run.name, run.data["models"][name]) for run in runs if name in run.data["models"]]
        found[name] = own[0][1] if all(about == own[0][1] for _, about in own) else dict(_joined(own))
    return found


def _common(runs: Sequence[PastRun]) -> dict[str, Any]:
    """What all configurations have in common, and everybody's strategies."""
    first = runs[0].data["config"]
    same = {key: value for key, value in first.items() if all(run.data["config"].get(key) == value for run in runs)}
    listed = [spec for run in runs for spec in run.data["config"].get("strategies", [])]
    strategies = [spec for place, spec in enumerate(listed) if spec not in listed[:place]]
    # report.md names these; where runs differ in them, the differences on top say how.
    differing = {key: "differs" for key in ("batch_size", "split") if key not in same}
    return {**same, **differing, "strategies": strategies}


def _others(run: PastRun, runs: Sequence[PastRun]) -> Iterator[tuple[str, Any]]:
    """Parts of a summary that this file does not know, under the run's name where runs differ in them."""
    for key, value in run.data.items():
        if key not in {*KNOWN, "sources", "differences"}:
            shared = all(other.data.get(key) == value for other in runs)
            yield (key if shared else f"{key}, {run.name}"), value
