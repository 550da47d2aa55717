"""Strategies side by side: one band each, a tile per stage, no wider than a phone can show."""

from __future__ import annotations

from collections.abc import Sequence
from textwrap import fill
from typing import Any, Final, Literal, NamedTuple

from matplotlib.colors import Normalize
from PIL import Image

from tokentrim.contracts.token_places import IN_ORDER
from tokentrim.drawing.sheet import Rect, axis_at, cut, fitted, size_of, width_of, write
from tokentrim.drawing.style import FAINT, INK
from tokentrim.explain.figures import no_scores, plane_name, spread
from tokentrim.explain.gather import DecidedStage, Explanation
from tokentrim.explain.panels import LIFE_MAP, MAP, Panel, scale, scale_bar

_TILE: Final = 1.28  # inches of the longer side of a picture
_GAP: Final = 0.1
_EDGE: Final = 0.2
_ACROSS: Final = 4  # tiles in a line
_WIDTH: Final = 2 * _EDGE + _ACROSS * _TILE + (_ACROSS - 1) * _GAP
_ROOM: Final = _WIDTH - 2 * _EDGE
_HEAD: Final = 0.52
_CAPTION: Final = 0.4  # above tiles
_AFTER: Final = 0.34  # below a strategy
_LEGEND: Final = 0.92
_MOST: Final = 6  # stages of a strategy
_WORDS: Final = 9  # points
_LINE: Final = 0.175


class _Kept(NamedTuple):
    """What became of a decision's tokens, as a tile of its own."""

    stage: DecidedStage


_Column = Literal["picture", "answering"] | DecidedStage | _Kept


class _Band(NamedTuple):
    """One strategy."""

    explanation: Explanation
    stages: list[DecidedStage]
    said: list[tuple[str, dict[str, Any]]]
    height: float


def overview_figure(
    plt: Any,
    explanations: Sequence[Explanation],
    images: Sequence[Image.Image],
    names: Sequence[str],
    question: str,
    reference: str | None,
) -> Any:
    """All strategies on one question.

    Args:
        plt: pyplot in our style.
        explanations: what each did.
        images: the prompt's pictures.
        names: what each of these is called; nothing, where that is plain.
        question: the prompt.
        reference: answer of the unpruned model, where it was asked.
    """
    number = explanations[0].cells.finest()
    image = images[explanations[0].cells.planes[number].image]
    side = size_of(image, _TILE)
    bands = [_band(explanation, reference, side[1]) for explanation in explanations]
    figure = plt.figure(figsize=(_WIDTH, _HEAD + sum(band.height for band in bands) + _LEGEND))
    title = fitted(question, _ROOM, 12, bold=True)
    write(figure, _EDGE, 0.26, title, fontsize=12, fontweight="bold")
    top = _HEAD
    for band in bands:
        _draw(figure, band, image, number, side, top)
        top += band.height
    _legend(figure, bands, plane_name(explanations[0], number, names), top)
    return figure


def _band(explanation: Explanation, reference: str | None, height: float) -> _Band:
    """What is said of a strategy, and how much room it takes."""
    stages = spread(explanation.stages, _MOST)
    said = _words(explanation, reference)
    lines = sum(text.count("\n") + 1 for text, _ in said)
    tiles = _tiles_height(_columns(stages, explanation), height)
    return _Band(explanation, stages, said, 0.3 + lines * _LINE + tiles + _AFTER)


def _columns(stages: Sequence[DecidedStage], explanation: Explanation) -> list[_Column]:
    """What stands side by side: the picture, each stage, and the answer's steps.

    What became of a stage's tokens stands below its scores, and beside them where a line has the room.
    """
    end: list[_Column] = ["answering"] if explanation.evictions else []
    beside: list[_Column] = [one for stage in stages for one in (stage, _Kept(stage))]
    if 1 + len(beside) + len(end) <= _ACROSS:
        return ["picture", *beside, *end]
    return ["picture", *stages, *end]


def _rows_of(columns: Sequence[_Column]) -> list[Sequence[_Column]]:
    return [columns[first : first + _ACROSS] for first in range(0, len(columns), _ACROSS)]


def _stacked(columns: Sequence[_Column]) -> bool:
    """Whether what became of tokens stands below their scores."""
    return not any(isinstance(one, _Kept) for one in columns)


def _tiles_height(columns: Sequence[_Column], height: float) -> float:
    """Inches of all lines of tiles."""
    return sum(_line_height(line, height) for line in _rows_of(columns))


def _line_height(line: Sequence[_Column], height: float) -> float:
    two = _stacked(line) and any(isinstance(one, DecidedStage) for one in line)
    return _CAPTION + (2 if two else 1) * (height + _GAP)


def _words(explanation: Explanation, reference: str | None) -> list[tuple[str, dict[str, Any]]]:
    """What the model answered and what that cost, line by line."""
    faint: dict[str, Any] = {"fontsize": _WORDS - 0.5, "color": FAINT}
    letters = int(_ROOM / width_of("the width of words", _WORDS) * len("the width of words"))
    answer = cut(explanation.answer, 2 * letters - 4) or "(empty answer)"
    said: list[tuple[str, dict[str, Any]]] = [(fill(answer, letters), {"fontsize": _WORDS, "color": INK})]
    if reference is not None:
        same = explanation.answer == reference
        unpruned = cut(reference, 2 * letters - 14) or "(empty answer)"
        said.append((fill("as unpruned" if same else f"unpruned: {unpruned}", letters), faint))
    if len(explanation.stages) > _MOST:
        said.append((f"{len(explanation.stages) - _MOST} more stages in their own files", faint))
    return said


def _draw(figure: Any, band: _Band, image: Image.Image, number: int, side: tuple[float, float], top: float) -> None:
    """One strategy from ``top`` inches on."""
    explanation = band.explanation
    cost = f"{explanation.layer_mean_tokens:.1f} tokens, mean over layers"
    name = fitted(explanation.strategy, _ROOM - width_of(cost, _WORDS - 0.5) - 0.2, 11, bold=True)
    write(figure, _EDGE, top + 0.12, name, fontsize=11, fontweight="bold")
    write(figure, _WIDTH - _EDGE, top + 0.12, cost, fontsize=_WORDS - 0.5, color=FAINT, ha="right")
    top += 0.26
    for text, style in band.said:
        write(figure, _EDGE, top, text, va="top", linespacing=1.3, **style)
        top += _LINE * (text.count("\n") + 1)
    top += 0.04
    columns = _columns(band.stages, explanation)
    for line in _rows_of(columns):
        for place, column in enumerate(line):
            left = _EDGE + place * (_TILE + _GAP)
            upper = Rect(left, figure.get_size_inches()[1] - top - _CAPTION - side[1], *side)
            _column(figure, explanation, column, image, number, upper, top)
            if isinstance(column, DecidedStage) and _stacked(columns):
                lower = upper._replace(bottom=upper.bottom - upper.height - _GAP)
                _became(Panel(axis_at(figure, lower), image, explanation.cells, number), column)
        top += _line_height(line, side[1])
    if not band.stages and not explanation.evictions:
        write(figure, _EDGE + _TILE + 3 * _GAP, top - side[1] / 2, "keeps everything:\nnothing is decided",
              fontsize=_WORDS, color=FAINT)  # fmt: skip


def _column(
    figure: Any, explanation: Explanation, column: _Column, image: Image.Image, number: int, upper: Rect, top: float
) -> None:
    """One tile with its caption."""

    def caption(first: str, second: str) -> None:
        write(figure, upper.left, top + 0.12, first, fontsize=_WORDS - 0.5, color=INK)
        write(figure, upper.left, top + 0.29, second, fontsize=_WORDS - 0.5, color=FAINT)

    panel = Panel(axis_at(figure, upper), image, explanation.cells, number)
    if column == "picture":
        caption("in their order" if explanation.in_order else "picture", f"{explanation.n_visual} tokens")
        panel.picture()
    elif column == "answering":
        caption("while answering", _fading(explanation))
        panel.heat(dict(enumerate(explanation.life)), Normalize(0, 1), LIFE_MAP)
    elif isinstance(column, _Kept):
        caption("what went on", f"{len(column.stage.kept)} tokens")
        _became(panel, column.stage)
    elif isinstance(column, DecidedStage):
        caption(f"before layer {column.boundary}", f"{len(column.tokens)} → {len(column.kept)}")
        if column.scores is None:
            panel.words(no_scores(column).replace("this method ", "this method\n"))
        else:
            panel.heat(dict(zip(column.tokens, column.scores, strict=True)), scale(column.scores)[0])
            panel.outline(column.kept, width=1.0)


def _became(panel: Panel, stage: DecidedStage) -> None:
    """What became of a decision's tokens."""
    if stage.into is None:
        panel.kept(stage.kept)
    else:
        panel.merged(stage.into, stage.kept, small=True)


def _fading(explanation: Explanation) -> str:
    """Mean visual entries per layer, at the begin and at the end."""
    first, last = (sum(layers) / len(layers) for layers in (explanation.held[0], explanation.held[-1]))
    return f"{first:.0f} → {last:.0f} per layer"


def _legend(figure: Any, bands: Sequence[_Band], shown: str, top: float) -> None:
    """What the colours mean: scores have a scale of their own in each tile; and what plane is ``shown``."""
    height = figure.get_size_inches()[1]
    bars = [(MAP, "scores, a scale per tile", ("lowest", "highest"))] * any(
        stage.scores is not None for band in bands for stage in band.stages
    )
    bars += [(LIFE_MAP, "share of layers and forwards that saw it", ("0", "1"))] * any(
        band.explanation.evictions for band in bands
    )
    for place, (colors, title, (low, high)) in enumerate(bars):
        left = _EDGE + place * (_ROOM + _GAP) / 2
        write(figure, left, top + 0.08, title, fontsize=_WORDS - 1, color=INK)
        axis = axis_at(figure, Rect(left, height - top - 0.32, _ROOM / 2 - 0.2, 0.11))
        scale_bar(axis, colors)
        write(figure, left, top + 0.42, low, fontsize=_WORDS - 1, color=FAINT)
        write(figure, left + _ROOM / 2 - 0.2, top + 0.42, high, fontsize=_WORDS - 1, color=FAINT, ha="right")
    foot = ["scores, kept outlined; below or beside them what went on, or what went into what"]
    if bands[0].explanation.in_order:
        foot = [IN_ORDER, "scores, kept outlined"]
    planes = len(bands[0].explanation.cells.planes)
    if planes > 1:
        foot.append(f"{shown}, one of {planes} planes")
    write(
        figure, _EDGE, height - 0.16, fitted("; ".join(foot), _ROOM, _WORDS - 1.5), fontsize=_WORDS - 1.5, color=FAINT
    )
