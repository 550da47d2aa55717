"""``gallery.json``: the first questions of every task, their pictures, and what every method kept of them.

It is made once, where models and tasks are at hand; drawings and reports are made from it anywhere.
"""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

from PIL import Image

from tokentrim.contracts.tasks import Sample
from tokentrim.contracts.token_places import Cells
from tokentrim.errors import reason_of
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
_FRAME: Final = 320  # of a frame of a video: there are many
_STORED: Final = re.compile(r"data:image/(png|jpeg);base64,([A-Za-z0-9+/]+={0,2})")


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
            sample, grid = samples[name], record["cells"]
            if sample.videos:
                cells_drawn, pictures, names = Cells.from_dict(grid).drawn(sample.images, sample.videos)
                grid = cells_drawn.as_dict()
            else:
                pictures, names = list(sample.images), []
            if place not in questions:
                questions[place] = _question(cell, sample, task.metric)
                still = len(sample.images)
                images.setdefault(
                    questions[place]["images"],
                    [
                        stored(image, _LONGEST if number < still else _FRAME)
                        | ({"name": names[number]} if number >= still else {})
                        for number, image in enumerate(pictures)
                    ],
                )
            _add(questions[place], cell, {**record, "cells": grid}, said[name])
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
        # How many frames of a video are drawn depends on the model, which may merge some.
        "images": f"{cell.task.task} {sample.id}" + (f" {cell.model.name}" if sample.videos else ""),
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


def stored(image: Image.Image, longest: int = _LONGEST) -> dict[str, Any]:
    """A picture as a data URI, small enough to travel in a report.

    Args:
        image: the picture.
        longest: pixels of the stored picture's longer side.
    """
    width, height = image.size
    shown = image.convert("RGB")
    shown.thumbnail((longest, longest), Image.Resampling.LANCZOS)
    exact = width * height <= _EXACT
    buffer = io.BytesIO()
    shown.save(buffer, "PNG", optimize=True) if exact else shown.save(buffer, "JPEG", quality=_QUALITY)
    data = base64.b64encode(buffer.getvalue()).decode()
    return {"src": f"data:image/{'png' if exact else 'jpeg'};base64,{data}", "width": width, "height": height}


def require_stored(src: str) -> None:
    """Raise ValueError unless this is a picture as :func:`stored` writes it: one that is here, whole and small."""
    found = _STORED.fullmatch(src)
    if found is None:
        raise ValueError("the source of a picture must be embedded data of a PNG or JPEG")
    try:
        with Image.open(io.BytesIO(base64.b64decode(found[2], validate=True)), formats=(found[1],)) as picture:
            if max(picture.size) <= _LONGEST:
                picture.load()
                return
    except Exception as cause:  # PIL raises what the damaged bytes lead to
        raise ValueError(f"the data of a picture must be a picture: {reason_of(cause)}") from cause
    raise ValueError(f"a picture must have at most {_LONGEST} pixels in a row")


def opened(image: Mapping[str, Any]) -> Image.Image:
    """The picture that :func:`stored` stored, in the size in which it is stored."""
    return Image.open(io.BytesIO(base64.b64decode(image["src"].partition(",")[2])))
