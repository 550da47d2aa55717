"""Tables of a comparison: lists of columns, written for a terminal and as Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from tokentrim.drawing.style import Look, looks
from tokentrim.runs.cells import REFERENCE, TEXT_ONLY
from tokentrim.runs.figures import Figure, Row, printed
from tokentrim.runs.specs import MEASURED

if TYPE_CHECKING:
    from rich.table import Table


METRICS: Final = {"exact": "short answers", "f1": "lists, F1"}
_SIGNIFICANT: Final = 0.05
_NAMED: Final = 3
"""Methods up to which a title names them."""
_ONCE: Final = ("costs", "times")  # groups of columns that are the same for every metric, but for their tasks
_KEY: Final = ("method", "budget_requested", "seed")
Data = Mapping[str, Any]
"""The content of ``summary.json``."""
Grid = tuple[list[str], list[list[str]]]


def overall_grid(data: Data, model: str) -> Grid:
    """(header, rows): methods and budgets of one model, with costs and the mean scores of both kinds of task."""
    metrics, grouped = _by_method(data, model)
    columns = printed("markdown")
    return ["method", "budget", *_titles(columns, metrics)], [_line(found, columns, metrics) for found in grouped]


def _by_method(data: Data, model: str) -> tuple[list[str], list[dict[str, Row]]]:
    """(metrics, per method and budget its row of each metric) of one model."""
    rows = [row for row in data["overall"] if row["model"] == model]
    grouped: dict[tuple[Any, ...], dict[str, Row]] = {}
    for row in rows:
        grouped.setdefault(_key(row), {})[row["metric"]] = row
    return metrics_of(rows), list(grouped.values())


def metrics_of(rows: Sequence[Row]) -> list[str]:
    """The metrics of some rows, the testbed's first."""
    found = dict.fromkeys(row["metric"] for row in rows)
    return [*(metric for metric in METRICS if metric in found), *(metric for metric in found if metric not in METRICS)]


def _key(row: Row) -> tuple[Any, ...]:
    """What a line of a table stands for, whatever the task."""
    return (*(row[name] for name in _KEY), row["boundary"] if row["method"] == TEXT_ONLY else None)


def _titles(columns: Sequence[Figure], metrics: Sequence[str]) -> list[str]:
    """Headings: costs once, then what is said of each metric."""
    once = [column.title for column in columns if column.group in _ONCE]
    each = [column for column in columns if column.group not in _ONCE]
    titles = [METRICS.get(metric, metric) if column.name == "accuracy" else column.title
              for metric in metrics for column in each]  # fmt: skip
    return [*once, *titles]


def _line(found: dict[str, Row], columns: Sequence[Figure], metrics: Sequence[str]) -> list[str]:
    """One method at one budget: costs, means over its metrics, then the other columns of each metric."""
    any_row = next(iter(found.values()))
    line = [row_name(any_row), budget_text(any_row)]
    line += [_text(column, {**any_row, column.name: _mean_of(found, column.name)})
             for column in columns if column.group in _ONCE]  # fmt: skip
    each = [column for column in columns if column.group not in _ONCE]
    for metric in metrics:
        row = found.get(metric)
        line += ["–" if row is None else _text(column, row) for column in each]
    return line


def _text(column: Figure, row: Row) -> str:
    """A row's value as tables print it; empty where it would say nothing."""
    value = row[column.name]
    if column.name == "accuracy":
        return score_text(row)
    if column.name == "budget_realised" and row["budget_requested"] is None:
        return ""
    if column.name == "text_only_accuracy" and row["method"] in (TEXT_ONLY, REFERENCE):
        return ""
    if column.name == "p_vs_random_adjusted":
        return against_random(row)
    if column.kind == "p":
        return p_text(value)
    if column.kind == "score":
        return score_of(row, column.name)
    return percent(value) if column.kind == "share" else "–" if value is None else str(value)


def split_grid(data: Data, model: str) -> Grid:
    """(header, rows): scores on questions that smaller pictures answer anyway, and on those that they do not."""
    metrics, grouped = _by_method(data, model)
    header = ["method", "budget"]
    for metric in metrics:
        header += [f"{METRICS.get(metric, metric)}: all", "easy", "hard", "hard questions"]
    lines: list[list[str]] = []
    for found in grouped:
        if all(row["hard_n"] is None for row in found.values()):
            continue
        any_row = next(iter(found.values()))
        line = [row_name(any_row), budget_text(any_row)]
        for metric in metrics:
            row = found.get(metric)
            line += ["–", "–", "–", "–"] if row is None else [
                score_of(row, "accuracy"),
                percent(row["easy_accuracy"]),
                interval_text(row["hard_accuracy"], row["hard_low"], row["hard_high"]),
                "–" if row["hard_n"] is None else f"{row['hard_n']} of {row['n']}",
            ]  # fmt: skip
        lines.append(line)
    return header, lines


def time_grid(data: Data, model: str) -> Grid:
    """(header, rows): the timing pass, medians with quartiles, and what they come to."""
    columns = printed("time")
    header = ["method", "budget", "prefill ms", "of unpruned", "selection ms", "decode ms per token", "of unpruned",
              "whole run ms", "of unpruned", "peak MiB", "of unpruned",
              *(column.title for column in columns)]  # fmt: skip
    lines: list[list[str]] = []
    for row in data["timings"]:
        if row["model"] != model:
            continue
        peak, share = row["peak_bytes"], row["peak_memory_ratio"]
        lines.append(
            [
                row["method"], budget_text(row),
                *(text for name in ("prefill", "decode", "total") for text in _timed(row, name)),
                "–" if peak is None else f"{peak / 2**20:.1f}", percent(share),
                *(_text(column, {column.name: column.read(row.get)}) for column in columns),
            ]
        )  # fmt: skip
    return header, lines


def _timed(row: Row, name: str) -> list[str]:
    """One part of a run: its time, its share of the unpruned run's and, behind prefill, the selection in it."""
    seconds, ratio = row[f"{name}_spread"], row[f"{name}_ratio_spread"]
    texts = [_spread(seconds, 1000), "" if ratio is None else _spread(ratio, 100)]
    return [*texts, _spread(row["selection_spread"], 1000)] if name == "prefill" else texts


def _spread(values: dict[str, float], scale: float) -> str:
    """Median and quartiles."""
    median, low, high = (values[name] * scale for name in ("median", "low", "high"))
    digits = 1 if scale == 100 else 2
    return f"{median:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


def _mean_of(found: dict[str, Row], name: str) -> float | None:
    """Mean of a cost over all tasks of both metrics."""
    pairs = [(row[name], len(row["tasks"])) for row in found.values() if row[name] is not None]
    return sum(value * n for value, n in pairs) / sum(n for _, n in pairs) if pairs else None


def task_grid(data: Data, model: str) -> Grid:
    """(header, rows): the score of every method and budget on every task of one model; seeds are pooled."""
    tasks, grouped = by_task(data, model)
    lines = [
        [row_name(next(iter(found.values()))), budget_text(next(iter(found.values()))),
         *(mark(found[task]) if task in found else "–" for task in tasks)]
        for found in grouped
    ]  # fmt: skip
    return ["method", "budget", *tasks], lines


def by_task(data: Data, model: str) -> tuple[list[str], list[dict[str, Row]]]:
    """(tasks, per method and budget its row of each task) of one model; seeds are pooled.

    In the order in which methods were asked for, text-only runs by their boundary.
    """
    single, pooled = ([row for row in data[part] if row["model"] == model] for part in ("cells", "pooled"))
    order = list(dict.fromkeys(map(_variant, single)))
    several = set(map(_variant, pooled))
    rows = [*(row for row in single if _variant(row) not in several), *pooled]
    rows.sort(key=lambda row: (order.index(_variant(row)), row["boundary"] if row["method"] == TEXT_ONLY else 0))
    grouped: dict[tuple[Any, ...], dict[str, Row]] = {}
    for row in rows:
        grouped.setdefault(_key(row), {})[row["task"]] = row
    return list(dict.fromkeys(row["task"] for row in single)), list(grouped.values())


def _variant(row: Row) -> tuple[str, float | None]:
    """A method at a budget, with whatever seeds."""
    return row["method"], row["budget_requested"]


def row_name(row: Row) -> str:
    """The method, with the boundary or the seed that tells it from others of its name."""
    if row["method"] == TEXT_ONLY:
        return f"{TEXT_ONLY}@{row['boundary']}"
    if len(row["seeds"]) > 1:
        return f"{row['method']} ({len(row['seeds'])} seeds)"
    return f"{row['method']} (seed {row['seed']})" if row["seed"] else row["method"]


def roles_of(data: Data) -> dict[str, Look]:
    """How every method of a comparison is drawn. Under any label a control stays one, whether it is a strategy or done
    to the pictures.
    """
    names = list(dict.fromkeys(row["method"] for row in (*data["overall"], *data["cells"])))
    strategies = {row["method"]: row.get("control") or (row["strategy"] or {}).get("name", "") for row in data["cells"]}
    return {name: found for name, found in looks(names, strategies).items() if name in names}


def title_of(data: Data) -> str:
    """What a comparison is about: its methods, or how many they are, and its models."""
    methods = [name for name, look in roles_of(data).items() if look.role == "method"]
    what = ", ".join(methods) if 0 < len(methods) <= _NAMED else f"{len(methods)} methods" if methods else "Controls"
    return f"{what} on {', '.join(data['models'])}"


def unreached(data: Data) -> Grid:
    """(header, rows): budgets that could not be reached, one line per method and model."""
    several = len(data["models"]) > 1
    found: dict[tuple[str, str], list[Row]] = {}
    for row in data["skipped"]:
        found.setdefault((row_name({"boundary": None, "seeds": [], **row}), row["model"]), []).append(row)
    lines: list[list[str]] = []
    for (name, model), rows in found.items():
        tasks = {row["task"] for row in data["cells"] if row["model"] == model} | {row["task"] for row in rows}
        missed = list(dict.fromkeys(row["task"] for row in rows))
        budgets = ", ".join(dict.fromkeys(map(budget_text, rows)))
        on = "all" if len(missed) == len(tasks) else ", ".join(missed)
        lines.append([name, *([model] if several else []), budgets, on, rows[-1]["skipped"]])
    return ["method", *(["model"] if several else []), "budget", "tasks", "why"], lines


def budget_text(row: Row) -> str:
    """The budget asked for; marked where it is not the share of layer-mean tokens."""
    if row["budget_requested"] is None:
        return ""
    of = {"kv_ratio": " KV", "kv_read_ratio": " KV seen", "flops_ratio": " FLOPs", MEASURED: " time"}.get(
        row["matched_by"], ""
    )
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
    return f"{value:.1f}" if value is not None and row.get("unit", "%") != "%" else percent(value)


def interval_text(value: float | None, low: float | None, high: float | None) -> str:
    """A share in per cent with its interval."""
    return "–" if value is None else f"{percent(value)} [{percent(low)}, {percent(high)}]"


def p_text(value: float | None) -> str:
    """A p value; small ones as a bound, because the permutation test cannot tell them apart."""
    if value is None:
        return ""
    return "p < 0.001" if value < 0.001 else f"p = {value:.3f}"


def against_random(row: Row) -> str:
    """How far a score lies from random's at the same budget, in which direction, and the corrected p value."""
    p, gain = row["p_vs_random_adjusted"], row.get("gain_vs_random")
    if p is None or gain is None:  # a comparison of an earlier version says no gain
        return p_text(p)
    word = "" if p >= _SIGNIFICANT or not gain else "better " if gain > 0 else "worse "
    size = f"{gain:+.1f}" if row.get("unit", "%") != "%" else f"{100 * gain:+.1f}"
    return f"{word}{size.replace('-', '−')}, {p_text(p)}"


def mark(row: Row) -> str:
    """A task's score; ``*`` where it is above random at the same budget after correction, ``†`` where it is below."""
    if row["accuracy"] is None:
        return "failed"
    p = row["p_vs_random_adjusted"]
    below = (row.get("gain_vs_random") or 0.0) < 0
    star = "" if p is None or p >= _SIGNIFICANT else "†" if below else "*"
    failed = f" ({row['failures']} failed)" if row["failures"] else ""
    return f"{score_of(row, 'accuracy')}{star}{failed}"


def overall_table(data: Data) -> Table:
    """The overall rows of every model for a terminal: scores without their intervals, to fit its width."""
    from rich.table import Table

    models = list(data["models"])
    table = Table(title=None, header_style="bold", box=None, pad_edge=False)
    metrics, timed = metrics_of(data["overall"]), bool(data["timings"])
    columns = [column for column in printed("terminal") if timed or column.source != "timing"]
    for name in [*(["model"] if len(models) > 1 else []), "method", "budget", *_titles(columns, metrics)]:
        table.add_column(name, justify="left" if name in ("method", "model") else "right")
    for model in models:
        previous = ""
        for found in _by_method(data, model)[1]:
            line = [text.split(" [")[0] for text in _line(found, columns, metrics)]
            if line[0] != previous and previous:
                table.add_section()
            previous = line[0]
            table.add_row(*([model] if len(models) > 1 else []), *line)
    return table


def markdown(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A table in Markdown; the first column to the left, the others to the right."""
    rule = ["---", *("---:" for _ in header[1:])]
    return "\n".join("| " + " | ".join(line) + " |" for line in [list(header), rule, *map(list, lines)])
