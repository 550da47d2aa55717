"""Tables of a comparison: one list of columns, written for a terminal and as Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

from tokentrim.compare.cells import REFERENCE, TEXT_ONLY

if TYPE_CHECKING:
    from rich.table import Table

    from tokentrim.compare.summary import Row, Summary

METRICS: Final = {"exact": "short answers", "f1": "lists, F1"}
_SIGNIFICANT: Final = 0.05


def overall_grid(summary: Summary, model: str) -> tuple[list[str], list[list[str]]]:
    """(header, rows): methods and budgets of one model, with costs and the mean scores of both kinds of task."""
    rows = [row for row in summary.overall if row["model"] == model]
    metrics = metrics_of(rows)
    header = ["method", "budget", "tokens per layer", "visual KV", "KV at end", "FLOPs"]
    for metric in metrics:
        header += [METRICS.get(metric, metric), "text only", "vs random", "same as unpruned"]
    grouped: dict[tuple[Any, ...], dict[str, Row]] = {}
    for row in rows:
        key = (row["method"], row["budget_requested"], row["seed"], row["boundary"])
        grouped.setdefault(key, {})[row["metric"]] = row
    return header, [_overall_line(found, metrics) for found in grouped.values()]


def metrics_of(rows: Sequence[Row]) -> list[str]:
    """The metrics of some rows, the testbed's first."""
    found = dict.fromkeys(row["metric"] for row in rows)
    return [*(metric for metric in METRICS if metric in found), *(metric for metric in found if metric not in METRICS)]


def _overall_line(found: dict[str, Row], metrics: Sequence[str]) -> list[str]:
    """One method at one budget."""
    any_row = next(iter(found.values()))
    costs = [_mean_of(found, name) for name in ("layer_mean_ratio", "kv_mean_ratio", "kv_end_ratio", "flops_ratio")]
    line = [row_name(any_row), budget_text(any_row), *(percent(cost) for cost in costs)]
    for metric in metrics:
        row = found.get(metric)
        line += ["–", "–", "–", "–"] if row is None else [
            score_text(row),
            "" if row["method"] in (TEXT_ONLY, REFERENCE) else score_of(row, "text_only_accuracy"),
            p_text(row["p_vs_random"]),
            percent(row["agreement"]),
        ]  # fmt: skip
    return line


def _mean_of(found: dict[str, Row], name: str) -> float | None:
    """Mean of a cost over all tasks of both metrics."""
    pairs = [(row[name], len(row["tasks"])) for row in found.values() if row[name] is not None]
    return sum(value * n for value, n in pairs) / sum(n for _, n in pairs) if pairs else None


def task_grid(summary: Summary, model: str) -> tuple[list[str], list[list[str]]]:
    """(header, rows): the score of every method and budget on every task of one model."""
    rows = [row for row in summary.cells if row["model"] == model]
    tasks = list(dict.fromkeys(row["task"] for row in rows))
    grouped: dict[tuple[Any, ...], dict[str, Row]] = {}
    for row in rows:
        boundary = row["boundary"] if row["method"] == TEXT_ONLY else None
        key = (row["method"], row["budget_requested"], row["seed"], boundary)
        grouped.setdefault(key, {})[row["task"]] = row
    lines = [
        [row_name(next(iter(found.values()))), budget_text(next(iter(found.values()))),
         *(mark(found[task]) if task in found else "–" for task in tasks)]
        for found in grouped.values()
    ]  # fmt: skip
    return ["method", "budget", *tasks], lines


def row_name(row: Row) -> str:
    """The method, with the boundary or the seed that tells it from others of its name."""
    if row["method"] == TEXT_ONLY:
        return f"{TEXT_ONLY}@{row['boundary']}"
    return f"{row['method']} (seed {row['seed']})" if row["seed"] else row["method"]


def budget_text(row: Row) -> str:
    """The budget asked for; marked where it is not the share of layer-mean tokens."""
    if row["budget_requested"] is None:
        return ""
    of = {"kv_ratio": " KV", "flops_ratio": " FLOPs"}.get(row["matched_by"], "")
    return f"{row['budget_requested']:.0%}{of}"


def percent(value: float | None) -> str:
    """A share with one decimal."""
    return "–" if value is None else f"{100 * value:.1f}"


def score_text(row: Row) -> str:
    """A score with its interval, and a mark for failures."""
    if row["accuracy"] is None:
        return "failed"
    failed = f" ({row['failures']} failed)" if row["failures"] else ""
    if row["accuracy_low"] is None:
        return f"{score_of(row, 'accuracy')}{failed}"
    return f"{score_of(row, 'accuracy')} [{percent(row['accuracy_low'])}, {percent(row['accuracy_high'])}]{failed}"


def score_of(row: Row, name: str) -> str:
    """A score in per cent, or as it is where the metric's scale goes beyond 1."""
    value: float | None = row[name]
    return f"{value:.1f}" if value is not None and row["unit"] != "%" else percent(value)


def p_text(value: float | None) -> str:
    """A p value; small ones as a bound, because the permutation test cannot tell them apart."""
    if value is None:
        return ""
    return "p < 0.001" if value < 0.001 else f"p = {value:.3f}"


def mark(row: Row) -> str:
    """A task's score; ``*`` where it differs from random at the same budget."""
    if row["accuracy"] is None:
        return "failed"
    p = row["p_vs_random"]
    star = "*" if p is not None and p < _SIGNIFICANT else ""
    failed = f" ({row['failures']} failed)" if row["failures"] else ""
    return f"{score_of(row, 'accuracy')}{star}{failed}"


def overall_table(summary: Summary) -> Table:
    """The overall rows of every model for a terminal: scores without their intervals, to fit its width."""
    from rich.table import Table

    models = list(summary.data["models"])
    table = Table(title=None, header_style="bold", box=None, pad_edge=False)
    names = ["method", "budget", "tokens/layer", "KV mean", "KV end", "FLOPs"]
    metrics = metrics_of(summary.overall)
    for name in [*(["model"] if len(models) > 1 else []), *names]:
        table.add_column(name, justify="left" if name in ("method", "model") else "right")
    for metric in metrics:
        table.add_column(METRICS.get(metric, metric), justify="right")
        table.add_column("text only", justify="right")
    for model in models:
        header, lines = overall_grid(summary, model)
        previous = ""
        for line in lines:
            scores = [line[place].split(" [")[0] for place in range(6, len(header), 4)]
            beside = [line[place] for place in range(7, len(header), 4)]
            pairs = [text for pair in zip(scores, beside, strict=True) for text in pair]
            if line[0] != previous and previous:
                table.add_section()
            previous = line[0]
            table.add_row(*([model] if len(models) > 1 else []), *line[:6], *pairs)
    return table


def markdown(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A table in Markdown; the first column to the left, the others to the right."""
    rule = ["---", *("---:" for _ in header[1:])]
    return "\n".join("| " + " | ".join(line) + " |" for line in [list(header), rule, *map(list, lines)])
