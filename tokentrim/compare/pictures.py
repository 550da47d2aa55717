"""``kept.png``: which patches each method kept, layer by layer, over the pictures themselves."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
from PIL import Image

from tokentrim.compare.gallery import Gallery, Question, opened
from tokentrim.contracts.token_places import Cells
from tokentrim.drawing.shade import shade
from tokentrim.drawing.sheet import Rect, axis_at, cut, fitted, framed, width_of, write
from tokentrim.drawing.style import FAINT, INK, Look, figure_style, looks
from tokentrim.runs.cells import REFERENCE, TEXT_ONLY
from tokentrim.runs.files import write_atomic
from tokentrim.runs.kept import Kept

_TILE: Final = 0.86  # inches
_HEAD: Final = 0.98  # above the tiles: question, right answer, layers
_TITLE: Final = 10.5  # points
_NAME: Final = 9.5
_SMALL: Final = 8
_ROOM: Final = 2.5  # that a question may take where tiles take less
_MOST_COLUMNS: Final = 6


class Line(NamedTuple):
    """One method on one question: what it kept, and what came of it."""

    method: str
    kept: Kept
    cells: Cells
    prediction: str
    score: float | None


class Block(NamedTuple):
    """One question with all methods; ``name`` says which of its pictures is shown, where it is one of a video."""

    question: Question
    image: Image.Image
    lines: list[Line]
    name: str = ""


def kept_picture(gallery: Gallery, model: str, path: Path) -> Path | None:
    """Draw one model at its middle budget, on one short question and one list where there are both."""
    questions = _chosen_questions([q for q in gallery["questions"] if q["model"] == model])
    budget = _middle_budget(questions)
    blocks = [block for question in questions if (block := _block(gallery, question, budget)) is not None]
    if not blocks:
        return None
    columns = _columns(blocks)
    names = list(dict.fromkeys(line.method for block in blocks for line in block.lines))
    with figure_style() as plt:
        said = "" if budget is None else f"budget {budget:.0%}"
        named = max(*(width_of(name, _NAME, bold=True) for name in names), width_of(said, _SMALL))
        margin, tiles = 0.25 + named, len(columns) * _TILE
        widths = [_width(block, tiles) for block in blocks]
        figure = plt.figure(figsize=(margin + sum(widths), _HEAD + len(names) * (_TILE + 0.04) + 0.1))
        for place, block in enumerate(blocks):
            left = margin + sum(widths[:place])
            _draw_block(figure, block, columns, names, Rect(left, 0, widths[place], 0), place == 0)
        write(figure, margin - 0.1, _HEAD - 0.25, said, fontsize=_SMALL, color=FAINT, ha="right")
        write_atomic(path, lambda part: figure.savefig(part, format="png"))
        plt.close(figure)
    return path


def _chosen_questions(questions: Sequence[Question]) -> list[Question]:
    """Up to two questions: the first of one task per kind of answer."""
    chosen: dict[str, Question] = {}
    for question in questions:
        chosen.setdefault(question["metric"], question)
    # 'where' asks for one object in one place, which a picture shows best.
    where = next((question for question in questions if question["task"] == "where"), None)
    if where is not None:
        chosen[where["metric"]] = where
    return list(chosen.values())


def _middle_budget(questions: Sequence[Question]) -> float | None:
    """The middle one of the budgets that were asked for."""
    asked = {line["budget_requested"] for question in questions for line in question["methods"]} - {None}
    budgets = sorted(asked, reverse=True)
    return budgets[len(budgets) // 2] if budgets else None


def _block(gallery: Gallery, question: Question, budget: float | None) -> Block | None:
    """A question under every method that answered it at ``budget``, or that has no budget."""
    images = gallery["images"][question["images"]]
    lines: dict[str, Line] = {}
    for said in question["methods"]:
        name = said["method"]
        # Of several seeds the first is drawn.
        if said["budget_requested"] in (None, budget) and name not in (REFERENCE, TEXT_ONLY, *lines):
            cells = Cells.from_dict(question["cells"][said["cells"]])
            lines[name] = Line(name, Kept.from_dict(said), cells, said["prediction"], said["score"])
    if not lines or not images:
        return None
    return Block(question, opened(images[0]), list(lines.values()), images[0].get("name", ""))


def _columns(blocks: Sequence[Block]) -> list[int | None]:
    """Layers at which some method changes what is kept, and None for what the caches held at the answer's end."""
    layers = sorted({first for block in blocks for line in block.lines for first, _ in line.kept.prefill})
    if len(layers) > _MOST_COLUMNS:
        places = np.linspace(0, len(layers) - 1, _MOST_COLUMNS).round().astype(int)
        layers = [layers[place] for place in places]
    fading = any(line.kept.evictions for block in blocks for line in block.lines)
    return [*layers, *([None] if fading else [])]


def _width(block: Block, tiles: float) -> float:
    """Inches that a question takes: tiles with answers beside them, or its own words where these are longer."""
    answers = max(width_of(_verdict(block, line)[0], 8.5) for line in block.lines)
    words = max(width_of(block.question["question"], _TITLE, bold=True), width_of(_right(block), 9))
    return max(tiles + 0.03 + answers, min(words, _ROOM)) + 0.25


def _right(block: Block) -> str:
    answer = f"answer: {block.question['answer']}" if block.question["metric"] == "exact" else ""
    return "; ".join(part for part in (answer, block.name) if part)


def _verdict(block: Block, line: Line) -> tuple[str, str]:
    """(what came of it, its colour)."""
    if block.question["metric"] == "exact":
        right = line.score == 1.0
        text = cut(line.prediction, 20) or "(nothing)"
        return f"{'✓' if right else '✗'} {text}", "#2a9d5c" if right else "#c0392b"
    name = "F1 " if block.question["metric"] == "f1" else ""
    return "" if line.score is None else f"{name}{line.score:.2f}", INK


def _draw_block(
    figure: Any, block: Block, columns: Sequence[int | None], names: Sequence[str], place: Rect,
    labelled: bool,
) -> None:  # fmt: skip
    """All methods on one question."""
    look = looks(names)
    left, room = place.left, place.width - 0.2
    title = fitted(block.question["question"], room, _TITLE, bold=True)
    write(figure, left, 0.2, title, fontsize=_TITLE, fontweight="bold")
    write(figure, left, 0.42, fitted(_right(block), room, 9), fontsize=9, color=FAINT)
    right = left + len(columns) * _TILE
    by_method = {line.method: line for line in block.lines}
    for order, layer in enumerate(columns):
        title = "last layer,\nat the end" if layer is None else f"layer {layer}"
        write(
            figure, left + (order + 0.5) * _TILE - 0.02, _HEAD - 0.25, title, fontsize=_SMALL, color=FAINT, ha="center"
        )
    for order, name in enumerate(names):
        top = _HEAD + order * (_TILE + 0.04)
        if labelled:
            write(figure, left - 0.1, top + _TILE / 2, name, color=look[name].color, ha="right", fontsize=_NAME,
                  fontweight="bold")  # fmt: skip
        if name in by_method:
            _draw_line(figure, by_method[name], block, columns, left, top, look[name])
        else:
            text = "not run: its budget\nis out of reach here"
            write(figure, (left + right) / 2, top + _TILE / 2, text, fontsize=_SMALL, color=FAINT, ha="center")


def _draw_line(
    figure: Any, line: Line, block: Block, columns: Sequence[int | None], left: float,
    top: float, look: Look,
) -> None:  # fmt: skip
    """One method on one question: a tile per column, then the answer."""
    bottom = figure.get_size_inches()[1] - top - _TILE
    number = line.cells.finest()
    plane = line.cells.planes[number]
    for place, layer in enumerate(columns):
        kept = line.kept.end if layer is None else line.kept.at(layer)
        axis = axis_at(figure, Rect(left + place * _TILE, bottom, _TILE - 0.05, _TILE - 0.05))
        axis.imshow(
            shade(block.image, line.cells.inside(number, kept), plane.rows, plane.cols),
            aspect="auto",
            interpolation="nearest",
        )
        framed(axis, look.color, 0.8)
        axis.text(
            0.97, 0.03, str(len(kept)), transform=axis.transAxes, ha="right", va="bottom", fontsize=7, color=INK,
            bbox={"facecolor": "white", "alpha": 0.75, "edgecolor": "none", "pad": 1},
        )  # fmt: skip
    x, y = left + len(columns) * _TILE + 0.03, top + (_TILE + 0.05) / 2
    text, color = _verdict(block, line)
    write(figure, x, y, text, fontsize=8.5, color=color)
