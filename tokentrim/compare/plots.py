"""``pareto.png``: the score against costs, for short answers and for long ones."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from tokentrim.compare.summary import Summary
from tokentrim.compare.tables import metrics_of
from tokentrim.drawing.style import FAINT, INK, Look, figure_style, looks
from tokentrim.runs.cells import REFERENCE, TEXT_ONLY
from tokentrim.runs.figures import CHARTED, Row
from tokentrim.runs.files import write_atomic

_LEGEND_NAMES: Final = 7
_SCORES: Final = {"exact": "right answers", "f1": "F1 of listed objects"}


def pareto(summary: Summary, model: str, path: Path) -> Path:
    """Draw the picture of one model."""
    rows = [row for row in summary.overall if row["model"] == model and row["accuracy"] is not None]
    metrics = metrics_of(rows)
    look = looks([row["method"] for row in rows])
    with figure_style() as plt:
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
