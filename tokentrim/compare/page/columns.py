"""Which columns a table of the page has: the known ones in their order, then whatever else the rows hold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

Kind = Literal["text", "percent", "score", "number", "milliseconds", "p"]
Group = Literal["costs", "score", "tests", "hard", "times", "more"]
GROUPS: Final[dict[Group, str]] = {
    "costs": "costs",
    "score": "score",
    "tests": "tests",
    "hard": "easy and hard questions",
    "times": "times",
    "more": "everything else",
}


@dataclass(frozen=True)
class Column:
    """One column.

    Attributes:
        key: of a row; parts of a nested value are joined by a dot.
        title: its heading.
        kind: how its values are written.
        group: by which it is shown or hidden.
        about: what it means, for a reader who asks.
    """

    key: str
    title: str
    kind: Kind
    group: Group
    about: str = ""


@dataclass(frozen=True)
class Value:
    """One cell of a table: the text, and what it is sorted by (None goes last in either direction)."""

    text: str
    sort: float | str | None


_KNOWN: Final = (
    Column("budget_realised", "realised", "percent", "costs", "the share that the budget means, as it was measured"),
    Column("layer_mean_ratio", "tokens per layer", "percent", "costs", "visual tokens, mean over layers, in prefill"),
    Column("kv_mean_ratio", "KV, mean", "percent", "costs", "visual entries of the cache, mean over decode steps"),
    Column("kv_end_ratio", "KV, end", "percent", "costs", "visual entries of the cache at the last decode step"),
    Column("flops_ratio", "FLOPs", "percent", "costs", "of the language model's prefill, physical convention"),
    Column("accuracy", "score", "score", "score", "mean score"),
    Column("accuracy_low", "95 % from", "score", "score", "lower end of the 95 % interval"),
    Column("accuracy_high", "to", "score", "score", "upper end of the 95 % interval"),
    Column("text_only_accuracy", "text only", "score", "score",
           "score with every visual token dropped where the method first prunes"),
    Column("p_vs_random_adjusted", "p vs random", "p", "tests",
           "paired test against random selection at the same budget, corrected for the number of tests"),
    Column("p_vs_none_adjusted", "p vs unpruned", "p", "tests",
           "paired test against the unpruned run, corrected for the number of tests"),
    Column("agreement", "same as unpruned", "percent", "tests", "answers that equal the unpruned run's word for word"),
    Column("easy_accuracy", "easy", "percent", "hard", "score on questions that a smaller picture answers anyway"),
    Column("easy_low", "95 % from", "percent", "hard", "lower end of the easy questions' interval"),
    Column("easy_high", "to", "percent", "hard", "upper end of the easy questions' interval"),
    Column("easy_n", "easy questions", "number", "hard", "how many there are"),
    Column("hard_accuracy", "hard", "percent", "hard", "score on questions that a smaller picture does not answer"),
    Column("hard_low", "95 % from", "percent", "hard", "lower end of the hard questions' interval"),
    Column("hard_high", "to", "percent", "hard", "upper end of the hard questions' interval"),
    Column("hard_n", "hard questions", "number", "hard", "how many there are"),
    Column("prefill_time_ratio", "prefill time", "percent", "times", "share of the unpruned run's, median"),
    Column("prefill_time_low", "quartile from", "percent", "times", "of prefill time"),
    Column("prefill_time_high", "to", "percent", "times", "of prefill time"),
    Column("prefill_verdict", "prefill verdict", "text", "times", "whether prefill is faster beyond the spread"),
    Column("decode_time_ratio", "decode time", "percent", "times", "per token, share of the unpruned run's"),
    Column("total_time_ratio", "whole run", "percent", "times", "its time, as a share of the unpruned run's"),
    Column("total_verdict", "whole run verdict", "text", "times", "whether all of it is faster beyond the spread"),
    Column("peak_memory_ratio", "peak memory", "percent", "times", "beyond the weights, share of the unpruned run's"),
    Column("prefill_seconds", "prefill, ms", "milliseconds", "times", "per question"),
    Column("decode_seconds_per_token", "decode, ms", "milliseconds", "times", "per new token"),
    Column("selection_seconds", "selection, ms", "milliseconds", "times", "per question"),
    Column("p_vs_random", "p vs random, raw", "p", "more", "not corrected"),
    Column("p_vs_none", "p vs unpruned, raw", "p", "more", "not corrected"),
    Column("budget_deviation", "off budget", "percent", "more", "realised less requested"),
    Column("picture_ratio", "pixels left", "percent", "more", "of those that the tower would look at"),
    Column("n", "answered", "number", "more", "questions that were answered"),
    Column("failures", "failed", "number", "more", "questions that failed; they are in no score"),
    Column("layer_mean_tokens", "tokens", "number", "more", "visual tokens, mean over layers"),
    Column("flops_ratio_field", "FLOPs, field's count", "percent", "more", "prefill FLOPs in the field's convention"),
    Column("kv_peak_ratio", "KV, peak", "percent", "more", "visual entries of the cache after prefill"),
    Column("kv_total_mean_ratio", "whole KV, mean", "percent", "more", "entries of the cache, text included"),
)  # fmt: skip
# What a row's own heading says already, or what every row of a table has in common.
_HEADING: Final = frozenset({"method", "model", "metric", "tasks", "budget_requested", "matched_by", "seed", "unit"})


def columns_of(rows: Sequence[Mapping[str, Any]], more: bool = False) -> list[Column]:
    """The columns that some row has a value in.

    Args:
        rows: of a summary.
        more: whether to show also what tells cells apart: task, metric, strategy, key.
    """
    flat = [flattened(row) for row in rows]
    keys = list(dict.fromkeys(key for row in flat for key, value in row.items() if value is not None))
    known = {column.key: column for column in _KNOWN}
    hidden = frozenset({"method", "model", "budget_requested", "unit", "skipped"}) if more else _HEADING
    others = [_unknown(key, flat) for key in keys if key not in known and key not in hidden]
    return [column for column in _KNOWN if column.key in keys] + others


def _unknown(key: str, rows: Sequence[Mapping[str, Any]]) -> Column:
    """A column for a key that this file does not know: a later version's, or a plugin's."""
    title = key.replace("_", " ").replace(".", ": ")
    values = [row[key] for row in rows if row.get(key) is not None]
    if not all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
        return Column(key, title, "text", "more")
    last = key.rsplit(".", 1)[-1]
    if last.startswith("p_"):
        return Column(key, title, "p", "tests")
    if "seconds" in last:
        return Column(key, title.replace("seconds", "ms"), "milliseconds", "times")
    if "accuracy" in last:
        return Column(key, title, "score", "score")
    if last.endswith(("_ratio", "_share", "_low", "_high")):
        return Column(key, title, "percent", "more")
    return Column(key, title, "number", "more")


def flattened(row: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A row without nesting: ``{"a": {"b": 1}}`` is ``{"a.b": 1}``; lists become text."""
    flat: dict[str, Any] = {}
    for key, value in row.items():
        if isinstance(value, Mapping) and prefix + key != "strategy":
            flat |= flattened(value, f"{prefix}{key}.")
        elif isinstance(value, Mapping):
            flat[prefix + key] = inline(value)
        elif isinstance(value, list | tuple):
            flat[prefix + key] = ", ".join(inline(item) for item in value)
        else:
            flat[prefix + key] = value
    return flat


def inline(value: Any) -> str:
    """Any plain data on one line, as YAML would write it."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {inline(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(inline(item) for item in value) + "]"
    # Not by equality: 0 equals False.
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def written(row: Mapping[str, Any], column: Column) -> Value:
    """A row's value in a column."""
    value: Any = row.get(column.key)
    if value is None:
        return Value("", None)
    if isinstance(value, bool):
        return Value("yes" if value else "no", str(value))
    if not isinstance(value, int | float):
        return Value(str(value), str(value))
    if column.kind == "p":
        return Value("< 0.001" if value < 0.001 else f"{value:.3f}", value)
    if column.kind == "milliseconds":
        return Value(_significant(1000 * value), value)
    if column.kind == "percent" or (column.kind == "score" and row.get("unit", "%") == "%"):
        return Value(f"{100 * value:.1f}", value)
    return Value(f"{value:.1f}" if column.kind == "score" else _significant(value), value)


def _significant(value: float) -> str:
    """A number with as many digits as say something, never as a power of ten where it need not be."""
    if value == round(value) and abs(value) < 1e9:
        return str(round(value))
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.3g}"
