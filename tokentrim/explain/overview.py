"""Strategies side by side: one row each, a tile per stage."""

from __future__ import annotations

from collections.abc import Sequence
from textwrap import fill, shorten
from typing import Any, Final

from matplotlib.colors import Normalize
from PIL import Image

from tokentrim.drawing.sheet import Rect, axis_at, size_of, write
from tokentrim.drawing.style import FAINT, INK
from tokentrim.explain.figures import no_scores, spread
from tokentrim.explain.gather import DecidedStage, Explanation
from tokentrim.explain.panels import LIFE_MAP, Panel, color_bar, scale

_TILE: Final = 1.45
_GAP: Final = 0.12
_LEFT: Final = 0.3
_NAME: Final = 2.15
_HEAD: Final = 0.5
_ROW: Final = 0.52  # above each row's tiles, for their captions
_FOOT: Final = 0.5
_BARS: Final = 1.6
_BAR: Final = 1.4
_MOST: Final = 6


def overview_figure(
    plt: Any, explanations: Sequence[Explanation], images: Sequence[Image.Image], question: str, reference: str | None
) -> Any:
    """All strategies on one question.

    Args:
        plt: pyplot in our style.
        explanations: what each did.
        images: the prompt's pictures.
        question: the prompt.
        reference: answer of the unpruned model, where it was asked.
    """
    number = explanations[0].cells.finest()
    image = images[explanations[0].cells.planes[number].image]
    width, height = size_of(image, _TILE)
    chosen = [spread(explanation.stages, _MOST) for explanation in explanations]
    columns = max(len(some) + bool(e.evictions) for some, e in zip(chosen, explanations, strict=True))
    columns = max(columns, 1) + 1
    said = [_words(explanation, reference) for explanation in explanations]
    rows = [
        max(_ROW + (2 if some else 1) * (height + _GAP), _ROW + words[-1][0] + 0.3)
        for some, words in zip(chosen, said, strict=True)
    ]
    figure_width = _LEFT + _NAME + columns * (width + _GAP) + _BARS
    figure_height = _HEAD + max(sum(rows), _ROW + 2 * (_BAR + 0.3)) + _FOOT
    figure = plt.figure(figsize=(figure_width, figure_height))
    write(figure, _LEFT, 0.26, shorten(question, 90, placeholder=" …"), fontsize=12, fontweight="bold")
    for order, (explanation, stages) in enumerate(zip(explanations, chosen, strict=True)):
        top = _HEAD + sum(rows[:order])
        for below, text, style in said[order]:
            write(figure, _LEFT, top + _ROW + below, text, va="top", linespacing=1.35, **style)
        left = _LEFT + _NAME
        write(figure, left, top + _ROW - 0.1, f"input: {explanation.n_visual}", fontsize=8, color=FAINT)
        bottom = figure_height - top - _ROW - height
        Panel(axis_at(figure, Rect(left, bottom, width, height)), image, explanation.cells, number).picture()
        for stage in stages:
            left += width + _GAP
            _column(figure, explanation, stage, image, number, Rect(left, bottom, width, height), top)
        left += width + _GAP
        if not stages and not explanation.evictions:
            write(figure, left, top + _ROW + height / 2, "keeps everything:\nnothing is decided", fontsize=8.5,
                  color=FAINT)  # fmt: skip
        if explanation.evictions:
            write(figure, left, top + _ROW - 0.27, "while answering", fontsize=8, color=INK)
            write(figure, left, top + _ROW - 0.1, _fading(explanation), fontsize=8, color=FAINT)
            panel = Panel(axis_at(figure, Rect(left, bottom, width, height)), image, explanation.cells, number)
            panel.heat(dict(enumerate(explanation.life)), Normalize(0, 1), LIFE_MAP)
    _bars(figure, explanations, chosen)
    foot = ["upper tiles: scores, kept outlined; lower tiles: what went on, or what went into what"]
    if len(explanations[0].cells.planes) > 1:
        foot.append(f"one of {len(explanations[0].cells.planes)} planes")
    write(figure, _LEFT, figure_height - 0.22, "; ".join(foot), fontsize=8, color=FAINT)
    return figure


def _words(explanation: Explanation, reference: str | None) -> list[tuple[float, str, dict[str, Any]]]:
    """The strategy, what it cost, what the model answered: (inches from the top, text, style); "" at the end."""
    faint = {"fontsize": 8, "color": FAINT}
    answer = shorten(explanation.answer or "(empty answer)", 110, placeholder=" …")
    pieces: list[tuple[str, float, dict[str, Any]]] = [
        (fill(explanation.strategy, 21), 0.2, {"fontsize": 10.5, "fontweight": "bold"}),
        (f"{explanation.layer_mean_tokens:.1f} tokens, mean over layers", 0.18, faint),
    ]
    hidden = max(0, len(explanation.stages) - _MOST)
    if hidden:
        pieces.append((f"{hidden} more stages in their own files", 0.18, faint))
    pieces.append((fill(answer, 29), 0.18, {"fontsize": 8.5, "color": INK}))
    if reference is not None:
        same = explanation.answer == reference
        text = "as unpruned" if same else f"unpruned: {shorten(reference, 90, placeholder=' …') or '(empty answer)'}"
        pieces.append((fill(text, 31), 0.17, faint))
    below, found = 0.0, list[tuple[float, str, dict[str, Any]]]()
    for text, line, style in pieces:
        found.append((below, text, style))
        below += line * (text.count("\n") + 1) + 0.08
    return [*found, (below, "", faint)]


def _column(
    figure: Any, explanation: Explanation, stage: DecidedStage, image: Image.Image, number: int, upper: Rect, top: float
) -> None:
    """Scores above, what became of the tokens below."""
    write(figure, upper.left, top + _ROW - 0.27, f"boundary {stage.boundary}", fontsize=8, color=INK)
    moved = f"{len(stage.tokens)} → {len(stage.kept)}"
    write(figure, upper.left, top + _ROW - 0.1, moved, fontsize=8, color=FAINT)
    scores = Panel(axis_at(figure, upper), image, explanation.cells, number)
    if stage.scores is None:
        scores.words(no_scores(stage).replace("this method ", "this method\n"))
    else:
        scores.heat(dict(zip(stage.tokens, stage.scores, strict=True)), scale(stage.scores)[0])
        scores.outline(stage.kept, width=1.0)
    below = Panel(
        axis_at(figure, upper._replace(bottom=upper.bottom - upper.height - _GAP)), image, explanation.cells, number
    )
    if stage.into is None:
        below.kept(stage.kept)
    else:
        below.merged(stage.into, stage.kept, small=True)


def _fading(explanation: Explanation) -> str:
    """Mean visual entries per layer, at the begin and at the end."""
    first, last = (sum(layers) / len(layers) for layers in (explanation.held[0], explanation.held[-1]))
    return f"{first:.0f} → {last:.0f} per layer"


def _bars(figure: Any, explanations: Sequence[Explanation], chosen: Sequence[Sequence[DecidedStage]]) -> None:
    """What the colours mean: scores have a scale of their own in each tile."""
    width, full = figure.get_size_inches()
    left, bottom = width - _BARS + 0.2, full - _HEAD - _ROW - _BAR
    if any(stage.scores is not None for stages in chosen for stage in stages):
        axis = axis_at(figure, Rect(left, bottom, 0.12, _BAR))
        color_bar(axis, Normalize(0, 1), "score (a scale per tile)")
        axis.set_yticks([0, 1], ["lowest", "highest"])
        bottom -= _BAR + 0.3
    if any(explanation.evictions for explanation in explanations):
        axis = axis_at(figure, Rect(left, bottom, 0.12, _BAR))
        color_bar(axis, Normalize(0, 1), "share of layers and\nforwards that saw it", colors=LIFE_MAP)
        axis.set_yticks([0, 0.5, 1])
