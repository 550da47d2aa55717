"""``gallery.json``: the first questions of every task, their pictures, and what every method kept of them.

It is made once, where models and tasks are at hand; drawings and reports are made from it anywhere.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from typing import Any, Final

from PIL import Image

from tokentrim.contracts.tasks import Sample
from tokentrim.plugins.loader import registry
from tokentrim.runs.cells import Cell
from tokentrim.runs.questions import questions_of
from tokentrim.runs.results import CellResult

Gallery = dict[str, Any]
Question = dict[str, Any]
SCHEMA: Final = 1
_LONGEST: Final = 640  # pixels of a stored picture's longer side
_EXACT: Final = 160 * 160  # pictures of at most so many pixels are stored without loss: their pixels can be seen
_QUALITY: Final = 85


def gallery_of(cells: Sequence[Cell], results: Mapping[str, CellResult]) -> Gallery:
    """The gallery of a comparison: empty where no question's tokens were recorded."""
    images: dict[str, Any] = {}
    questions: dict[tuple[str, str, str], Question] = {}
    for cell in cells:
        result = results.get(cell.key)
        recorded: dict[str, Any] = result.head.get("pictures", {}) if result is not None else {}
        if result is None or not recorded:
            continue
        task = registry("task").get(cell.task.task)
        samples = {sample.id: sample for sample in questions_of(task, cell.split, min(cell.pictures, cell.n))}
        said = {line["sample"]: line for line in result.samples if line["failure"] is None}
        for name, record in recorded.items():
            if name not in samples or name not in said or record["cells"] is None:
                continue
            place = (cell.model.name, task.name, name)
            if place not in questions:
                questions[place] = _question(cell, samples[name], task.metric)
                images.setdefault(questions[place]["images"], [stored(image) for image in samples[name].images])
            _add(questions[place], cell, record, said[name])
    return {"schema": SCHEMA, "images": images, "questions": list(questions.values())}


def _question(cell: Cell, sample: Sample, metric: str) -> Question:
    """A question without its methods."""
    return {
        "model": cell.model.name,
        "task": cell.task.task,
        "metric": metric,
        "sample": sample.id,
        "question": sample.question,
        "answer": sample.answer,
        "images": f"{cell.task.task} {sample.id}",
        "cells": [],
        "methods": [],
    }


def _add(question: Question, cell: Cell, record: Mapping[str, Any], said: Mapping[str, Any]) -> None:
    """Add one method's line; methods that see the same grid share it."""
    grids: list[Any] = question["cells"]
    if record["cells"] not in grids:
        grids.append(record["cells"])
    question["methods"].append(
        {
            **{name: value for name, value in record.items() if name != "cells"},
            "cells": grids.index(record["cells"]),
            "method": cell.method,
            "budget_requested": cell.budget,
            "matched_by": cell.match,
            "seed": cell.seed,
            "boundary": cell.boundary,
            "prediction": said["prediction"],
            "score": said["score"],
        }
    )


def stored(image: Image.Image) -> dict[str, Any]:
    """A picture as a data URI, small enough to travel in a report."""
    width, height = image.size
    shown = image.convert("RGB")
    shown.thumbnail((_LONGEST, _LONGEST), Image.Resampling.LANCZOS)
    exact = width * height <= _EXACT
    buffer = io.BytesIO()
    shown.save(buffer, "PNG", optimize=True) if exact else shown.save(buffer, "JPEG", quality=_QUALITY)
    data = base64.b64encode(buffer.getvalue()).decode()
    return {"src": f"data:image/{'png' if exact else 'jpeg'};base64,{data}", "width": width, "height": height}


def opened(image: Mapping[str, Any]) -> Image.Image:
    """The picture that :func:`stored` stored, in the size in which it is stored."""
    return Image.open(io.BytesIO(base64.b64decode(image["src"].partition(",")[2])))
