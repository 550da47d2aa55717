"""The figures of a comparison: every column of ``summary.json``'s rows, said once.

What records costs (cells, harnesses), what makes rows of them, and every table, chart and page reads this list: a new
column is one row here, in the order in which readers meet it. It imports nothing that measures.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, Literal

Row = dict[str, Any]
"""One row of a summary, by name of figure."""
Entry = Callable[[str], Any]
"""What a pass recorded, by name; None where it has no such entry."""

Kind = Literal["text", "texts", "mapping", "count", "counts", "number", "share", "score", "seconds", "p"]
TEXTUAL: Final = frozenset[Kind]({"text", "texts", "mapping", "counts"})

TYPES: Final[dict[Kind, Any]] = {
    "text": str,
    "texts": list[str],
    "mapping": dict[str, Any],
    "count": int,
    "counts": list[int],
    "number": float,
    "share": float,
    "score": float,
    "seconds": float,
    "p": float,
}
"""What a value of each kind is in a file."""

Group = Literal["costs", "score", "tests", "hard", "times", "more"]
GROUPS: Final[dict[Group, str]] = {
    "costs": "costs",
    "score": "score",
    "tests": "tests",
    "hard": "easy and hard questions",
    "times": "times",
    "more": "everything else",
}
FOLDED: Final[tuple[Group, ...]] = ("hard", "times", "more")
"""Groups that the page hides until they are asked for."""

Source = Literal["rows", "report", "cell", "timing"]
SOURCES: Final[dict[Source, str]] = {
    "rows": "answers and settings",
    "report": "the answers' reports",
    "cell": "the cell",
    "timing": "the timing pass",
}
Rows = Literal["cells", "means"]
Table = Literal["markdown", "terminal", "time"]


@dataclass(frozen=True)
class Figure:
    """One column.

    Attributes:
        name: its key in a row.
        title: what tables print above it.
        kind: how a value is checked and written; shares and seconds are printed in per cent and milliseconds.
        group: of columns, which the page shows or hides together.
        meaning: one sentence.
        source: who gives it: ``compare.rows``, from answers, scores and settings; the session's report, mean over
            questions of its attribute of this name; another entry of a cell's head; or a row of the timing pass.
        of: makes it of what the source recorded; None where it is recorded under its own name.
        over: how seeds, and tasks, become one value.
        rows: kinds of rows that have it: cells (pooled ones too), and means over tasks.
        always: whether no row may lack it.
        tables: those that print it beside ``report.html``, which has all.
        chart: title of the chart of scores against it; empty where there is none.
    """

    name: str
    title: str
    kind: Kind
    group: Group
    meaning: str
    source: Source = "rows"
    of: Callable[[Entry], Any] | None = None
    over: Literal["mean", "sum", "first"] = "mean"
    rows: tuple[Rows, ...] = ("cells", "means")
    always: bool = False
    tables: tuple[Table, ...] = ()
    chart: str = ""

    def read(self, entry: Entry) -> Any:
        """Its value in what one pass recorded."""
        return entry(self.name) if self.of is None else self.of(entry)


FIGURES: Final = (
    Figure("method", "method", "text", "more", "label in tables", always=True),
    Figure("strategy", "strategy", "mapping", "more",
           "the strategy as a plain dict, its knob solved; it can be pasted into a configuration; null for `downscale`",
           "cell", over="first", rows=("cells",)),
    Figure("control", "control", "text", "more", "`downscale` where pictures were scaled down instead; else null"),
    Figure("task", "task", "text", "more", "what was asked", rows=("cells",), always=True),
    Figure("tasks", "tasks", "texts", "more", "what the means are over", rows=("means",), always=True),
    Figure("metric", "metric", "text", "more",
           "`exact` (words equal), `f1` (of the listed objects), or a task's own name for its metric", always=True),
    Figure("unit", "unit", "text", "more",
           "`%` where the score is a share; empty where the metric has a scale of its own beyond 1", always=True),
    Figure("model", "model", "text", "more", "of whom it was asked", always=True),
    Figure("n", "answered", "count", "more", "questions that were answered", always=True),
    Figure("budget_requested", "budget", "share", "more", "the share asked for; null where it ran as configured"),
    Figure("matched_by", "matched by", "text", "more", "what that share is of, or `fixed`", always=True),
    Figure("seed", "seed", "count", "more", "where the method draws random numbers: the one seed of this row, or null"),
    Figure("seeds", "seeds", "counts", "more", "all seeds of this row", always=True),
    Figure("boundary", "boundary", "number", "more",
           "the first boundary at which it drops tokens, with its knob solved; the questions' median where the data "
           "decide; null where it leaves prefill alone"),
    Figure("budget_realised", "realised", "share", "costs",
           "the share that the budget means, as it was measured (`kv_mean_ratio` for the cache; for `downscale` in the "
           "form of same tokens `picture_ratio`, and null where the budget is of FLOPs or time)", tables=("markdown",)),
    Figure("layer_mean_ratio", "tokens per layer", "share", "costs",
           "visual tokens that layers process in prefill, mean over layers, as a share of the prompt's", "report",
           tables=("markdown", "terminal"), chart="visual tokens, mean over layers"),
    Figure("kv_mean_ratio", "KV, mean", "share", "costs", "visual entries of the cache, mean over decode steps",
           "report", tables=("markdown", "terminal"), chart="visual KV, mean over decoding"),
    Figure("kv_end_ratio", "KV, end", "share", "costs", "visual entries of the cache at the last decode step", "report",
           tables=("markdown",)),
    Figure("kv_read_ratio", "KV, seen", "share", "costs",
           "visual entries of the cache that attention sees, mean over decode steps: those in memory, unless a method "
           "holds entries unseen because they may return", "report"),
    Figure("flops_ratio", "FLOPs", "share", "costs", "FLOPs of the language model's prefill, physical convention",
           "report", tables=("markdown", "terminal"), chart="prefill FLOPs"),
    Figure("accuracy", "score", "score", "score",
           "mean score; or the task's own score of all answers together, where that is no mean",
           tables=("markdown", "terminal")),
    Figure("accuracy_low", "95 % from", "score", "score", "lower end of the 95 % interval; null where there is none"),
    Figure("accuracy_high", "to", "score", "score", "upper end of the 95 % interval"),
    Figure("text_only_accuracy", "text only", "score", "score",
           "the score of `text-only` at the same boundary: every visual token dropped where the method first prunes",
           tables=("markdown", "terminal")),
    Figure("p_vs_random_adjusted", "p vs random", "p", "tests",
           "paired test against `random` at the same budget, corrected for the number of tests; null for a single seed "
           "of several, because its pooled row is tested", tables=("markdown",)),
    Figure("gain_vs_random", "over random", "score", "tests",
           "mean score less that of `random` at the same budget, over the questions that both answered"),
    Figure("p_vs_none_adjusted", "p vs unpruned", "p", "tests",
           "paired test against the unpruned run, likewise corrected"),
    Figure("agreement", "same as unpruned", "share", "tests",
           "share of answers that equal the unpruned run's word for word", tables=("markdown",)),
    Figure("easy_accuracy", "easy", "share", "hard",
           "score on questions that the scaled-down picture answers anyway at this budget"),
    Figure("easy_low", "95 % from", "share", "hard", "lower end of the easy questions' 95 % interval"),
    Figure("easy_high", "to", "share", "hard", "upper end of the easy questions' 95 % interval"),
    Figure("easy_n", "easy questions", "count", "hard", "how many there are"),
    Figure("hard_accuracy", "hard", "share", "hard",
           "score on questions that the scaled-down picture does not answer and the unpruned run does",
           tables=("terminal",)),
    Figure("hard_low", "95 % from", "share", "hard", "lower end of the hard questions' 95 % interval"),
    Figure("hard_high", "to", "share", "hard", "upper end of the hard questions' 95 % interval"),
    Figure("hard_n", "hard questions", "count", "hard", "how many there are"),
    Figure("prefill_time_ratio", "prefill time", "share", "times",
           "prefill time as a share of the unpruned run's, median", "timing", tables=("terminal",)),
    Figure("prefill_time_low", "quartile from", "share", "times", "lower quartile of that share", "timing"),
    Figure("prefill_time_high", "to", "share", "times", "upper quartile of that share", "timing"),
    Figure("prefill_verdict", "prefill verdict", "text", "times",
           "whether prefill is faster: `net saving`, `within the spread` or `no net saving`", "timing",
           tables=("time",)),
    Figure("decode_time_ratio", "decode time", "share", "times",
           "time per further token as a share of the unpruned run's, median", "timing"),
    Figure("total_time_ratio", "whole run", "share", "times",
           "time of the whole run as a share of the unpruned run's, median", "timing"),
    Figure("total_verdict", "whole run verdict", "text", "times", "whether all of it is faster, likewise", "timing",
           tables=("time",)),
    Figure("net_saving", "net saving", "share", "times",
           "share of the unpruned run's time that is saved, prefill and decoding together: 1 less `total_time_ratio`; "
           "below zero where selecting costs more than it saves", "timing",
           of=lambda timed: None if (ratio := timed("total_time_ratio")) is None else 1 - ratio, tables=("time",)),
    Figure("peak_memory_ratio", "peak memory", "share", "times",
           "peak memory beyond the weights as a share of the unpruned run's", "timing"),
    Figure("prefill_seconds", "prefill, ms", "seconds", "times",
           "per question: time of its batch divided by the batch's questions", "cell"),
    Figure("decode_seconds_per_token", "decode, ms", "seconds", "times",
           "decode time over all new tokens but each answer's first; null where nothing was decoded", "cell"),
    Figure("selection_seconds", "selection, ms", "seconds", "times",
           "per question, in prefill and decoding together", "cell"),
    Figure("p_vs_random", "p vs random, raw", "p", "more",
           "paired test against `random` at the same budget (the mean over its seeds), not corrected"),
    Figure("p_vs_none", "p vs unpruned, raw", "p", "more", "paired test against the unpruned run, not corrected"),
    Figure("budget_deviation", "off budget", "share", "more", "`budget_realised` less `budget_requested`"),
    Figure("picture_ratio", "pixels left", "share", "more",
           "for `downscale`: pixels that are left of those that the tower would look at", "cell"),
    Figure("form", "form", "text", "more", "for `downscale`: `fewer tokens` or `same tokens`", "cell", over="first"),
    Figure("layer_mean_tokens", "tokens", "number", "more",
           "visual tokens that layers process in prefill, mean over layers", "report"),
    Figure("flops_ratio_field", "FLOPs, field's count", "share", "more", "prefill FLOPs in the field's convention",
           "report"),
    Figure("kv_peak_ratio", "KV, peak", "share", "more", "visual entries of the cache after prefill", "report"),
    Figure("kv_total_mean_ratio", "whole KV, mean", "share", "more",
           "entries of the cache, text included, mean over decode steps", "report"),
    Figure("guide_flops_ratio", "guide's FLOPs", "share", "more",
           "FLOPs of a guide against the unpruned prefill of the model, on top of `flops_ratio`", "report"),
    Figure("early_exit_ratio", "early exits", "share", "more",
           "share of questions that the guide answered in the model's place", "report"),
    Figure("pruning_events", "selections", "count", "more", "selections applied", "cell", over="sum", rows=("cells",)),
    Figure("failures", "failed", "count", "more",
           "questions that failed and are in no score, and 1 if the cell failed as a whole", always=True),
    Figure("key", "key", "text", "more",
           "hash of all that may change the result: model files, versions of torch, transformers and tokentrim, "
           "device, task, questions, strategy, budget, batch size", rows=("cells",), always=True),
    Figure("skipped", "skipped", "text", "more", "null; what could not be run is listed under `skipped`", "cell",
           over="first", rows=("cells",)),
)  # fmt: skip

REPORTED: Final = tuple(figure.name for figure in FIGURES if figure.source == "report")
"""Attributes of a session's report that are averaged over questions."""
CLOCKED: Final = frozenset(figure.name for figure in FIGURES if figure.kind == "seconds")
"""Times of a pass over answers, which say nothing where others ran beside it."""
TIMED: Final = tuple(figure for figure in FIGURES if figure.source == "timing")
"""What every row repeats of its method's row in the timing pass."""
CHARTED: Final = {figure.name: figure.chart for figure in FIGURES if figure.chart}
"""Costs that scores are drawn against, with the titles of their charts."""


def figures_of(rows: Rows) -> list[Figure]:
    """The columns of one kind of rows."""
    return [figure for figure in FIGURES if rows in figure.rows]


def printed(table: Table) -> list[Figure]:
    """The columns that a table prints."""
    return [figure for figure in FIGURES if table in figure.tables]
