"""``kept.png``: which patches each method kept, layer by layer, over the pictures themselves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from textwrap import shorten
from typing import Any, Final, NamedTuple

import numpy as np

from tokentrim.compare.cells import REFERENCE, TEXT_ONLY, Cell
from tokentrim.compare.planes import Cells
from tokentrim.compare.results import CellResult, write_atomic
from tokentrim.compare.shade import shade
from tokentrim.compare.style import FAINT, INK, Look, figure_style, looks
from tokentrim.plugins import registry
from tokentrim.tasks import Sample

_TILE: Final = 0.86  # inches
_MARGIN: Final = 0.78
_LETTER: Final = 0.085  # width of a letter of a method's name
_ANSWER: Final = 1.02
_MOST_COLUMNS: Final = 6


class Line(NamedTuple):
    """One method on one question: what it kept, and what came of it."""

    method: str
    picture: dict[str, Any]
    prediction: str
    score: float


class Block(NamedTuple):
    """One question with all methods."""

    sample: Sample
    metric: str
    lines: list[Line]


def kept_picture(cells: Sequence[Cell], results: Mapping[str, CellResult], path: Path) -> Path | None:
    """Draw the model of ``cells`` at its middle budget, on one short question and one list where there are both."""
    chosen = _chosen_cells(cells)
    blocks = [block for members in chosen if (block := _block(members, results)) is not None]
    if not blocks:
        return None
    columns = _columns(blocks)
    names = list(dict.fromkeys(line.method for block in blocks for line in block.lines))
    with figure_style() as plt:
        margin = max(_MARGIN, 0.2 + _LETTER * max(len(name) for name in names))
        width = margin + len(blocks) * (len(columns) * _TILE + _ANSWER)
        height = 0.78 + len(names) * (_TILE + 0.04) + 0.1
        figure = plt.figure(figsize=(width, height))
        for place, block in enumerate(blocks):
            left = margin + place * (len(columns) * _TILE + _ANSWER)
            _draw_block(figure, block, columns, names, left, place == 0)
        budget = next((cell.budget for members in chosen for cell in members if cell.budget is not None), None)
        if budget is not None:
            figure.text(0.06 / width, 1 - 0.53 / height, f"budget {budget:.0%}", fontsize=8, color=FAINT, va="center")
        write_atomic(path, lambda part: figure.savefig(part, format="png"))
        plt.close(figure)
    return path


def _chosen_cells(cells: Sequence[Cell]) -> list[list[Cell]]:
    """Cells of up to two questions: one per kind of task, at the middle budget, with the first seed."""
    tasks: dict[str, str] = {}
    for cell in cells:
        tasks.setdefault(registry("task").get(cell.task.task).metric, cell.task.task)
    # 'where' asks for one object in one place, which a picture shows best.
    if any(cell.task.task == "where" for cell in cells):
        tasks["exact"] = "where"
    chosen: list[list[Cell]] = []
    for task in tasks.values():
        own = [c for c in cells if c.task.task == task and c.method not in (REFERENCE, TEXT_ONLY)]
        budgets = sorted({c.budget for c in own if c.budget is not None}, reverse=True)
        middle = budgets[len(budgets) // 2] if budgets else None
        chosen.append([c for c in own if c.budget in (None, middle) and not c.seed])
    return chosen


def _block(cells: Sequence[Cell], results: Mapping[str, CellResult]) -> Block | None:
    """The first recorded question of a task, under every method that answered it."""
    if not cells:
        return None
    task = registry("task").get(cells[0].task.task)
    sample = task.samples(cells[0].split, 1)[0]
    lines: list[Line] = []
    for cell in cells:
        result = results[cell.key]
        said = next((s for s in result.samples if s["sample"] == sample.id and s["failure"] is None), None)
        picture = result.head.get("pictures", {}).get(sample.id)
        if said is not None and picture is not None and picture.get("cells"):
            lines.append(Line(cell.method, picture, said["prediction"], said["score"]))
    return Block(sample, task.metric, lines) if lines and sample.images else None


def _columns(blocks: Sequence[Block]) -> list[int | None]:
    """Layers at which some method changes what is kept, and None for what the caches held at the answer's end."""
    layers = sorted({stage[0] for block in blocks for line in block.lines for stage in line.picture["stages"]})
    if len(layers) > _MOST_COLUMNS:
        places = np.linspace(0, len(layers) - 1, _MOST_COLUMNS).round().astype(int)
        layers = [layers[place] for place in places]
    fading = any(line.picture["end"] != line.picture["stages"][-1][1] for block in blocks for line in block.lines)
    return [*layers, *([None] if fading else [])]


def _draw_block(
    figure: Any, block: Block, columns: Sequence[int | None], names: Sequence[str], left: float,
    labelled: bool,
) -> None:  # fmt: skip
    """All methods on one question."""
    width, height = figure.get_size_inches()
    look = looks(names)
    question = shorten(block.sample.question, 46, placeholder=" …")
    answer = shorten(block.sample.answer, 30, placeholder=" …") if block.metric == "exact" else ""
    figure.text(left / width, 1 - 0.2 / height, question, fontsize=10.5, fontweight="bold", va="center")
    if answer:
        figure.text(
            (left + len(columns) * _TILE - 0.05) / width, 1 - 0.2 / height, f"answer: {answer}", fontsize=9,
            color=FAINT, va="center", ha="right",
        )  # fmt: skip
    by_method = {line.method: line for line in block.lines}
    for place, layer in enumerate(columns):
        title = "cache at\nthe end" if layer is None else f"layer {layer}"
        x = left + (place + 0.5) * _TILE - 0.02
        figure.text(x / width, 1 - 0.53 / height, title, fontsize=8, color=FAINT, ha="center", va="center")
    for order, name in enumerate(names):
        bottom = height - 0.74 - (order + 1) * (_TILE + 0.04)
        if labelled:
            x, y = (left - 0.1) / width, (bottom + _TILE / 2) / height
            figure.text(x, y, name, color=look[name].color, ha="right", va="center", fontsize=9.5, fontweight="bold")
        if name in by_method:
            _draw_line(figure, by_method[name], block, columns, left, bottom, look[name])
        else:
            x, y = (left + len(columns) * _TILE / 2) / width, (bottom + _TILE / 2) / height
            figure.text(
                x, y, "not run: its budget is out of reach here", fontsize=8, color=FAINT, ha="center", va="center"
            )


def _draw_line(
    figure: Any, line: Line, block: Block, columns: Sequence[int | None], left: float,
    bottom: float, look: Look,
) -> None:  # fmt: skip
    """One method on one question: a tile per column, then the answer."""
    width, height = figure.get_size_inches()
    image = block.sample.images[0]
    cells = Cells.from_dict(line.picture["cells"])
    number = cells.finest()
    plane = cells.planes[number]
    for place, layer in enumerate(columns):
        kept = _kept(line.picture, layer)
        axis = figure.add_axes(
            ((left + place * _TILE) / width, bottom / height, (_TILE - 0.05) / width, (_TILE - 0.05) / height)
        )
        axis.imshow(
            shade(image, cells.inside(number, kept), plane.rows, plane.cols), aspect="auto", interpolation="nearest"
        )
        axis.set(xticks=[], yticks=[])
        axis.grid(visible=False)
        for spine in axis.spines.values():
            spine.set(visible=True, color=look.color, linewidth=0.8)
        axis.text(
            0.97, 0.03, str(len(kept)), transform=axis.transAxes, ha="right", va="bottom", fontsize=7, color=INK,
            bbox={"facecolor": "white", "alpha": 0.75, "edgecolor": "none", "pad": 1},
        )  # fmt: skip
    x, y = (left + len(columns) * _TILE + 0.03) / width, (bottom + (_TILE - 0.05) / 2) / height
    if block.metric == "exact":
        right = line.score == 1.0
        text, color = shorten(line.prediction or "(nothing)", 14, placeholder="…"), "#2a9d5c" if right else "#c0392b"
        figure.text(x, y, f"{'✓' if right else '✗'} {text}", fontsize=8, color=color, va="center")
    else:
        name = "F1 " if block.metric == "f1" else ""
        text = "" if line.score is None else f"{name}{line.score:.2f}"
        figure.text(x, y, text, fontsize=8.5, color=INK, va="center")


def _kept(picture: dict[str, Any], layer: int | None) -> list[int]:
    """Tokens that a layer kept, or that the last layer's cache held at the end."""
    if layer is None:
        return picture["end"]
    return [tokens for first, tokens in picture["stages"] if first <= layer][-1]
