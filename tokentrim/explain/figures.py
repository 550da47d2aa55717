"""Pictures of one strategy: one per decision of the prefill, one of the decode steps."""

from __future__ import annotations

from collections.abc import Sequence
from textwrap import fill
from typing import Any, Final, TypeVar

from PIL import Image

from tokentrim.drawing.sheet import Rect, axis_at, fitted, size_of, width_of, write
from tokentrim.drawing.style import FAINT, INK
from tokentrim.explain.gather import DecidedStage, Eviction, Explanation
from tokentrim.explain.panels import LIFE_MAP, Panel, color_bar, scale

_SIDE: Final = 2.2  # inches of the longer side of a picture
_GAP: Final = 0.28
_LEFT: Final = 0.3
_TOP: Final = 0.98
_CAPTION: Final = 0.28
_BAR: Final = 0.95
_FOOT: Final = 0.42
_TILE: Final = 1.5
_BETWEEN: Final = 0.14  # tiles of decisions
_MOST_STEPS: Final = 5
T = TypeVar("T")


def plane_name(explanation: Explanation, number: int, names: Sequence[str]) -> str:
    """What a plane shows, where that is not plain; ``names`` are those of its pictures."""
    plane = explanation.cells.planes[number]
    tiled = any(other.plane for other in explanation.cells.planes if other.image == plane.image)
    words = [names[plane.image]] if names[plane.image] else []
    words += [("tiles" if plane.plane else "thumbnail")] if tiled else []
    return ", ".join(words)


def stage_figure(
    plt: Any, explanation: Explanation, stage: DecidedStage, images: Sequence[Image.Image], names: Sequence[str]
) -> Any:
    """One decision: the picture, the scores with what was kept outlined, and what became of the tokens."""
    planes = explanation.cells.planes
    sizes = [size_of(images[plane.image], _SIDE) for plane in planes]
    wide = max(width for width, _ in sizes)
    named = [plane_name(explanation, number, names) for number in range(len(planes))]
    heights = [height + (0.22 if name else 0) for (_, height), name in zip(sizes, named, strict=True)]
    bar_width = _GAP if stage.scores is None else _BAR + _GAP
    figure_width = _LEFT + 3 * wide + _GAP + bar_width + _LEFT
    figure_height = _TOP + _CAPTION + sum(heights) + _GAP * (len(planes) - 1) + _FOOT
    figure = plt.figure(figsize=(figure_width, figure_height))
    place = "the language model's input" if stage.boundary == 0 else f"before layer {stage.boundary}"
    _title(figure, explanation, stage.part)
    write(
        figure, _LEFT, 0.58,
        f"boundary {stage.boundary}, {place}: {len(stage.kept)} of {len(stage.tokens)} visual tokens go on",
        fontsize=9.5, color=INK,
    )  # fmt: skip
    reads = ", ".join(stage.needs) or "nothing of the model"
    write(figure, _LEFT, 0.8, f"reads {reads}", fontsize=8.5, color=FAINT)
    lefts = (_LEFT, _LEFT + wide + _GAP, _LEFT + 2 * wide + _GAP + bar_width)
    heads = ("picture and patches", _score_head(stage), _kept_head(stage))
    for left, head in zip(lefts, heads, strict=True):
        write(figure, left, _TOP + 0.12, head, fontsize=9, color=INK)
    values = None if stage.scores is None else dict(zip(stage.tokens, stage.scores, strict=True))
    norm, kind = scale(stage.scores or ())
    top = _TOP + _CAPTION
    for number, ((width, height), name) in enumerate(zip(sizes, named, strict=True)):
        if name:
            write(figure, _LEFT, top + 0.1, name, fontsize=8, color=FAINT)
            top += 0.22
        bottom = figure_height - top - height
        panels = [
            Panel(axis_at(figure, Rect(left, bottom, width, height)), images[planes[number].image],
                  explanation.cells, number)
            for left in lefts
        ]  # fmt: skip
        panels[0].picture()
        if values is None:
            panels[1].words(no_scores(stage))
        else:
            panels[1].heat(values, norm)
            panels[1].outline(stage.kept)
        if stage.into is None:
            panels[2].kept(stage.kept)
        else:
            panels[2].merged(stage.into, stage.kept)
        if values is not None and number == 0:
            bar = axis_at(figure, Rect(lefts[1] + width + 0.24, bottom, 0.14, height))
            color_bar(bar, norm, f"score ({kind})", stage.threshold)
        top += height + _GAP
    _foot(figure, explanation, stage)
    return figure


def _title(figure: Any, explanation: Explanation, part: str) -> None:
    """As much of the title as there is room for."""
    room = figure.get_size_inches()[0] - 2 * _LEFT
    title = fitted(titled(explanation, part), room, 13, bold=True)
    write(figure, _LEFT, 0.3, title, fontsize=13, fontweight="bold")


def _note(figure: Any, words: Sequence[str]) -> None:
    """Words on the last lines."""
    text, (width, height) = "; ".join(words), figure.get_size_inches()
    letters = int(len(text) * min(1.0, (width - 2 * _LEFT) / max(width_of(text, 8), 0.1)))
    write(figure, _LEFT, height - 0.12, fill(text, max(letters, 20)), fontsize=8, color=FAINT, va="bottom")


def titled(explanation: Explanation, part: str) -> str:
    """The strategy, and the part of it where that is another."""
    return part if part == explanation.strategy else f"{explanation.strategy} · {part}"


def no_scores(stage: DecidedStage) -> str:
    """What stands where scores would."""
    return "no scores:\nthis method computes new tokens" if stage.made else "no scores:\nthis method gives none"


def _score_head(stage: DecidedStage) -> str:
    return "scores" if stage.scores is None else "scores, kept outlined"


def _kept_head(stage: DecidedStage) -> str:
    if stage.into is not None:
        into = stage.into
        lost = len(stage.tokens) - len({*into, *stage.kept})
        return f"merged: {len(into) - sum(a == b for a, b in into.items())}, dropped: {lost}"
    return "kept places, with new features" if stage.made else "kept patches"


def _foot(figure: Any, explanation: Explanation, stage: DecidedStage) -> None:
    """What a reader must know beside the pictures."""
    words = [f"scores: {stage.about}"] if stage.about else []
    if len(stage.tokens) < explanation.n_visual:
        words.append("grey: dropped at an earlier boundary")
    if stage.into is not None:
        words.append("one colour: one group; arrows point to the token that it became")
    words += explanation.notes
    _note(figure, words)


def decode_figure(plt: Any, explanation: Explanation, images: Sequence[Image.Image]) -> Any:
    """The decode steps: entries per layer and forward, how long each token was seen, and one layer's decisions."""
    layer = watched_layer(explanation)
    chosen = _chosen_steps([one for one in explanation.evictions if one.layer == layer])
    number = explanation.cells.finest()
    image = images[explanation.cells.planes[number].image]
    big, tile = size_of(image, 2.3), size_of(image, _TILE)
    table_width = max(2.8, min(3.4, 0.2 * len(explanation.held) + 0.6))
    width = max(_LEFT + 0.55 + table_width + 1.2 + big[0] + _BAR, 2 * _LEFT + len(chosen) * (tile[0] + _BETWEEN))
    upper = max(big[1], 2.2)
    lower = _TOP + _CAPTION + upper + 0.95
    height = lower + 0.72 + tile[1] + _FOOT
    figure = plt.figure(figsize=(width, height))
    _title(figure, explanation, explanation.evictions[0].part)
    ends = (sum(explanation.held[0]), sum(explanation.held[-1]))
    write(
        figure, _LEFT, 0.58,
        f"visual entries that all layers see: {ends[0]} after prefill, {ends[1]} in decode forward "
        f"{len(explanation.held) - 1}", fontsize=9.5, color=INK,
    )  # fmt: skip
    bottom = height - _TOP - _CAPTION - upper
    left = _LEFT + 0.35
    write(figure, left, _TOP + 0.12, "visual entries that each layer attends to", fontsize=9)
    _table(figure, explanation, Rect(left, bottom, table_width, upper))
    left += table_width + 1.2
    write(figure, left, _TOP + 0.12, "share of layers and decode forwards that saw it", fontsize=9)
    panel = Panel(axis_at(figure, Rect(left, bottom + upper - big[1], *big)), image, explanation.cells, number)
    from matplotlib.colors import Normalize

    panel.heat(dict(enumerate(explanation.life)), Normalize(0, 1), LIFE_MAP)
    bar = axis_at(figure, Rect(left + big[0] + 0.18, bottom + upper - big[1], 0.14, big[1]))
    color_bar(bar, Normalize(0, 1), "share", colors=LIFE_MAP)
    write(
        figure, _LEFT, lower + 0.08,
        f"decisions of layer {layer}: scores of what its cache held; crossed out: what leaves or is not seen",
        fontsize=9,
    )  # fmt: skip
    for order, eviction in enumerate(chosen):
        rect = Rect(_LEFT + order * (tile[0] + _BETWEEN), height - lower - 0.64 - tile[1], *tile)
        _eviction_tile(figure, rect, explanation, eviction, image, number)
    _note(figure, _decode_notes(explanation, number))
    return figure


def watched_layer(explanation: Explanation) -> int:
    """The layer whose decisions are shown: the first of those that decide most often."""
    counts: dict[int, int] = {}
    for one in explanation.evictions:
        counts[one.layer] = counts.get(one.layer, 0) + (len(one.kept) < len(one.tokens))
    return max(sorted(counts), key=lambda layer: counts[layer])


def _chosen_steps(evictions: Sequence[Eviction]) -> list[Eviction]:
    """A few decisions, evenly spread, the first and the last among them."""
    return spread([one for one in evictions if len(one.kept) < len(one.tokens)] or evictions, _MOST_STEPS)


def spread(listed: Sequence[T], most: int) -> list[T]:
    """All of them, or ``most``, evenly spread, the first and the last among them."""
    if len(listed) <= most:
        return list(listed)
    return [listed[round(order * (len(listed) - 1) / (most - 1))] for order in range(most)]


def _table(figure: Any, explanation: Explanation, rect: Rect) -> None:
    """Entries by layer (down) and decode forward (across), labelled with the token that the forward produced."""
    import numpy as np

    axis = axis_at(figure, rect)
    counts = np.array(explanation.held).T
    shown = axis.imshow(counts, aspect="auto", cmap="viridis", vmin=0, vmax=explanation.n_visual,
                        interpolation="nearest")  # fmt: skip
    axis.grid(visible=False)
    axis.set_ylabel("decoder layer", fontsize=8)
    steps = list(range(counts.shape[1]))
    stride = max(1, -(-len(steps) // 16))
    names = [explanation.words[step] if step < len(explanation.words) else "" for step in steps]
    axis.set_xticks(steps[::stride], [name or "·" for name in names[::stride]], rotation=60, ha="right", fontsize=7.5,
                    rotation_mode="anchor")  # fmt: skip
    axis.tick_params(labelsize=7.5, length=2)
    axis.set_xlabel("forward, by the token that it produced (the first is prefill)", fontsize=8)
    bar = axis_at(figure, Rect(rect.left + rect.width + 0.12, rect.bottom, 0.12, rect.height))
    drawn = figure.colorbar(shown, cax=bar)
    drawn.outline.set(linewidth=0.6, edgecolor=FAINT)
    drawn.set_label("visual entries", fontsize=8)
    bar.tick_params(labelsize=7.5, length=2)


def _eviction_tile(
    figure: Any, rect: Rect, explanation: Explanation, eviction: Eviction, image: Image.Image, number: int
) -> None:
    """One decision of one layer at one forward."""
    top = figure.get_size_inches()[1] - rect.bottom - rect.height
    word = explanation.words[eviction.step] if eviction.step < len(explanation.words) else ""
    write(figure, rect.left, top - 0.29, f"forward {eviction.step}" + (f" → {word}" if word else ""), fontsize=8)
    write(figure, rect.left, top - 0.12, f"{len(eviction.tokens)} → {len(eviction.kept)}", fontsize=8, color=FAINT)
    panel = Panel(axis_at(figure, rect), image, explanation.cells, number)
    if eviction.scores is None:
        panel.kept(eviction.kept)
        return
    norm, _ = scale(eviction.scores)
    panel.heat(dict(zip(eviction.tokens, eviction.scores, strict=True)), norm)
    panel.cross_out(set(eviction.tokens) - set(eviction.kept))


def _decode_notes(explanation: Explanation, number: int) -> list[str]:
    words = ["yellow: the highest score of a decision, violet its lowest", "grey: no longer in this layer's cache"]
    if len(explanation.cells.planes) > 1:
        words.append(f"of {len(explanation.cells.planes)} planes the one with the most tokens is shown")
    if any(one.scores is None for one in explanation.evictions):
        words.append("no scores: this method does not rank entries")
    return [*words, *explanation.notes]
