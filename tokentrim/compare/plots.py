"""``pareto.png``: the score against costs, for short answers and for long ones; of many methods a chart per family."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from tokentrim.compare.families import charts_of, families
from tokentrim.compare.fronts import Chart, Label, Series
from tokentrim.compare.summary import Summary
from tokentrim.compare.tables import metrics_of, roles_of
from tokentrim.drawing.sheet import Rect, axis_at, write
from tokentrim.drawing.style import FAINT, INK, PAPER, Look, figure_style
from tokentrim.runs.cells import REFERENCE, TEXT_ONLY
from tokentrim.runs.figures import CHARTED, Row
from tokentrim.runs.files import write_atomic

_LEGEND_NAMES: Final = 7
_ACROSS: Final = 2  # small charts in a row where there is one kind of score
_UNIT: Final = 0.0105  # inches of a unit of a chart's view box
_GREY: Final = "#d3d7de"
_SCORES: Final = {"exact": "right answers", "f1": "F1 of listed objects"}


def pareto(summary: Summary, model: str, path: Path) -> Path:
    """Draw the picture of one model."""
    rows = [row for row in summary.overall if row["model"] == model and row["accuracy"] is not None]
    metrics = metrics_of(rows)
    look = roles_of(summary.data)
    with figure_style() as plt:
        if families(summary.data, look):
            figure = _small_charts(plt, summary, rows, look)
            write_atomic(path, lambda part: figure.savefig(part, format="png"))
            plt.close(figure)
            return path
        height = 1.0 + 2.75 * len(metrics)
        figure, axes = plt.subplots(
            len(metrics), len(CHARTED), figsize=(10.5, height), sharey="row", squeeze=False, layout="constrained"
        )
        for line, metric in enumerate(metrics):
            of_metric = [row for row in rows if row["metric"] == metric]
            for place, (cost, title) in enumerate(CHARTED.items()):
                panel(axes[line, place], of_metric, cost, look)
                axes[line, place].set_title(title if line == 0 else "")
            tasks = len(of_metric[0]["tasks"])
            axes[line, 0].set_ylabel(f"{_SCORES.get(metric, metric)}\nmean of {tasks} task{'s' if tasks > 1 else ''}")
        axes[-1, len(CHARTED) // 2].set_xlabel("share of the unpruned run")
        _legend(figure, rows, look)
        # The format is named, because the temporary file's own suffix is not to be relied on.
        write_atomic(path, lambda part: figure.savefig(part, format="png"))
        plt.close(figure)
    return path


def panel(axis: Any, rows: Sequence[Row], cost: str, look: dict[str, Look]) -> None:
    """One score against one cost."""
    from matplotlib.ticker import PercentFormatter

    for method in dict.fromkeys(row["method"] for row in rows):
        own = sorted((row for row in rows if row["method"] == method), key=lambda row: row[cost])
        if method == REFERENCE:
            axis.axhline(own[0]["accuracy"], color=INK, linestyle=(0, (4, 3)), linewidth=1, zorder=1)
        elif method == TEXT_ONLY:
            _text_only(axis, own, cost, look[method])
        else:
            _curve(axis, own, cost, look[method])
    axis.set_xlim(-0.03, 1.03)
    axis.set_xticks([0, 0.25, 0.5, 0.75, 1])
    axis.xaxis.set_major_formatter(PercentFormatter(1.0))
    if all(row["unit"] == "%" for row in rows):
        axis.set_ylim(-0.03, 1.04)
        axis.yaxis.set_major_formatter(PercentFormatter(1.0))


def _curve(axis: Any, rows: Sequence[Row], cost: str, look: Look) -> None:
    """One method over its budgets, each point with its interval; seeds are drawn apart."""
    for seed in dict.fromkeys(row["seed"] for row in rows):
        own = [row for row in rows if row["seed"] == seed]
        x, y = [row[cost] for row in own], [row["accuracy"] for row in own]
        # A score without an interval gets no bar.
        low, high = (
            [mean if row[name] is None else row[name] for mean, row in zip(y, own, strict=True)]
            for name in ("accuracy_low", "accuracy_high")
        )
        reach = [
            [mean - end for mean, end in zip(y, low, strict=True)],
            [end - mean for mean, end in zip(y, high, strict=True)],
        ]
        axis.errorbar(x, y, yerr=reach, fmt="none", ecolor=look.color, elinewidth=1, alpha=0.35, zorder=2)
        axis.plot(x, y, zorder=3, **_drawn(look))


def _drawn(look: Look) -> dict[str, Any]:
    """How a method's line is drawn: filled and solid; hollow and broken for what is no method."""
    style: dict[str, Any] = {"color": look.color, "marker": look.marker, "markersize": 5, "linewidth": 1.6}
    if look.role == "method":
        return {**style, "markeredgecolor": "white", "markeredgewidth": 0.6}
    dashes = (0, (1.5, 1.5)) if look.role == "bound" else (0, (3.5, 2))
    return {**style, "markerfacecolor": "white", "linestyle": dashes, "linewidth": 1.3}


def _text_only(axis: Any, rows: Sequence[Row], cost: str, look: Look) -> None:
    """What the model answers with no visual token from a boundary on: crosses, with the boundary."""
    for row in rows:
        place = (row[cost], row["accuracy"])
        axis.plot(*place, marker=look.marker, color=look.color, markersize=6, linestyle="none", clip_on=False, zorder=4)
        axis.annotate(
            f"@{row['boundary']}",
            place,
            xytext=(0, 5),
            textcoords="offset points",
            fontsize=7.5,
            color=FAINT,
            ha="center",
        )


def _legend(figure: Any, rows: Sequence[Row], look: dict[str, Look]) -> None:
    """One legend below all panels, in the order of the table."""
    from matplotlib.lines import Line2D

    handles = [Line2D([], [], color=INK, linestyle=(0, (4, 3)), linewidth=1, label="unpruned")]
    for method in dict.fromkeys(row["method"] for row in rows):
        if method not in (REFERENCE, TEXT_ONLY):
            handles.append(Line2D([], [], label=method, **_drawn(look[method])))
    if any(row["method"] == TEXT_ONLY for row in rows):
        color, marker, _ = look[TEXT_ONLY]
        label = "text-only from layer @ on"
        handles.append(Line2D([], [], color=color, marker=marker, markersize=6, linestyle="none", label=label))
    # Rows of equal length read better than one that spills over; seven names fit into one.
    lines = -(-len(handles) // _LEGEND_NAMES)
    columns = -(-len(handles) // lines)
    figure.legend(handles=handles, loc="outside lower center", ncols=columns, fontsize=9, handlelength=2)


def _small_charts(plt: Any, summary: Summary, rows: Sequence[Row], look: dict[str, Look]) -> Any:
    """A chart per family; kinds of scores stand side by side."""
    metrics = metrics_of(rows)
    by_metric = [charts_of(summary.data, [row for row in rows if row["metric"] == name], look) for name in metrics]
    # Families that one metric lacks leave a gap, so that a row is about one family.
    titles = list(dict.fromkeys(chart.title for charts in by_metric for chart in charts))
    cells: list[list[Chart | None]] = [
        [next((chart for chart in charts if chart.title == title), None) for charts in by_metric] for title in titles
    ]
    if len(metrics) == 1:
        flat = [line[0] for line in cells]
        cells = [flat[place : place + _ACROSS] for place in range(0, len(flat), _ACROSS)]
    columns = max(len(line) for line in cells)
    wide = max(chart.width for line in cells for chart in line if chart) * _UNIT
    heights = [max(chart.height for chart in line if chart) * _UNIT + 0.14 for line in cells]
    head = 0.42
    figure = plt.figure(figsize=(columns * (wide + 0.1) + 0.1, head + sum(heights) + 0.45))
    for place, metric in enumerate(metrics):
        tasks = next(len(row["tasks"]) for row in rows if row["metric"] == metric)
        said = f"{_SCORES.get(metric, metric)}, mean of {tasks} task{'s' if tasks > 1 else ''}"
        write(figure, 0.15 + place * (wide + 0.1), 0.2, said, fontsize=11, fontweight="bold")
    top = head
    for line, height in zip(cells, heights, strict=True):
        for place, chart in enumerate(line):
            if chart is not None:
                left = 0.1 + place * (wide + 0.1)
                write(figure, left + chart.left * _UNIT, top + 0.16, chart.title, fontsize=9, fontweight="bold")
                bottom = figure.get_size_inches()[1] - top - 0.3 - chart.height * _UNIT
                axis = axis_at(figure, Rect(left, bottom, wide, chart.height * _UNIT))
                _small(axis, chart, look)
                if line is cells[-1]:
                    axis.text((chart.left + chart.right) / 2, chart.bottom + 32, chart.axis, ha="center", va="center",
                              fontsize=8, color=FAINT)  # fmt: skip
        top += height
    foot = "grey: all other methods; dashed and dotted: the unpruned run; bars: 95 % intervals"
    write(figure, 0.15, figure.get_size_inches()[1] - 0.14, foot, fontsize=8, color=FAINT)
    return figure


def _small(axis: Any, chart: Chart, look: dict[str, Look]) -> None:
    """One small chart, in the units of its view box."""
    axis.set(xlim=(0, chart.width), ylim=(chart.height, 0))
    axis.set_axis_off()
    for tick in chart.y_ticks:
        axis.plot((chart.left, chart.right), (tick.at, tick.at), color="#e7e9ee", linewidth=0.8, zorder=0)
        axis.text(chart.left - 5, tick.at, tick.text, ha="right", va="center", fontsize=7.5, color=FAINT)
    for tick in chart.x_ticks:
        axis.plot((tick.at, tick.at), (chart.top, chart.bottom), color="#e7e9ee", linewidth=0.8, zorder=0)
        axis.text(tick.at, chart.bottom + 5, tick.text, ha="center", va="top", fontsize=7.5, color=FAINT)
    for line in chart.grey:
        alone = "." if len(line) == 1 else None
        axis.plot(*zip(*line, strict=True), color=_GREY, linewidth=0.9, zorder=1, marker=alone, markersize=4)
    if chart.reference is not None:
        level = chart.reference.y
        axis.plot((chart.left, chart.right), (level, level), color=INK, linestyle=(0, (5, 2, 1, 2)), linewidth=0.9)
    for series in chart.series:
        _small_series(axis, series)
    for label in chart.labels:
        _small_label(axis, label, look[label.method])


def _small_series(axis: Any, series: Series) -> None:
    """One method, each of its seeds apart; what is text-only has no line."""
    for line in series.lines:
        for point in line:
            if point.low is not None and point.high is not None:
                ends = (point.low, point.high)
                axis.plot((point.x, point.x), ends, color=series.look.color, linewidth=0.9, alpha=0.4, zorder=2)
        x, y = [point.x for point in line], [point.y for point in line]
        axis.plot(x, y, zorder=3, clip_on=False, **_marked(series.look))


def _marked(look: Look) -> dict[str, Any]:
    """As ``_drawn``, with markers whose shapes tell small charts' methods apart without their colours."""
    if look.role == "text":
        return {"color": look.color, "marker": look.marker, "markersize": 5, "linestyle": "none"}
    size = 5.2 if look.marker in "os" else 6.2
    return {**_drawn(look), "markersize": size, "markeredgecolor": look.color, "markeredgewidth": 0.8}


def _small_label(axis: Any, label: Label, look: Look) -> None:
    """A name, joined to its point, behind its marker where names stand in a column."""
    from matplotlib.patheffects import withStroke

    where = {"start": "left", "end": "right", "middle": "center"}[label.anchor]
    x = label.x
    if label.anchor == "start":
        axis.plot((label.from_x, x), (label.from_y, label.y - 4), color=FAINT, linewidth=0.5, alpha=0.6, zorder=1)
        axis.plot((x + 4,), (label.y - 4,), zorder=3, **_marked(look))
        x += 12
    paper = withStroke(linewidth=2, foreground=PAPER)
    axis.text(x, label.y - 4, label.text, ha=where, va="center", fontsize=8, color=INK, zorder=4, path_effects=[paper])
