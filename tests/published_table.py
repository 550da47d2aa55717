"""Tables of published numbers, made of ``docs/published.yaml`` and of plans of the configurations beside it."""

from __future__ import annotations

from pathlib import Path

import yaml

from tokentrim.config.specs import load_config, resolve
from tokentrim.counting.forecast import plan
from tokentrim.counting.published import PRESETS

DOCS = Path(__file__).parent.parent / "docs"
CONFIGS = DOCS / "examples/configs/published"
# The model that rows of each list are about, and its visual tokens.
MODELS = {
    "rows": ("llava-1.5-7b", 576),
    "others": ("llava-1.5-7b", 576),
    "next": ("llava-next-vicuna-7b", 2880),
    "qwen": ("qwen2.5-vl-7b", 1296),
}


def data():
    return yaml.safe_load((DOCS / "published.yaml").read_text(encoding="utf-8"))


def every_row(found):
    """All rows of published numbers."""
    return [row for name in MODELS for row in found[name]]


def config_of(row):
    return (CONFIGS / f"{row['config']}.yaml").resolve() if "config" in row else None


def layer_mean(path, model="llava-1.5-7b", n_visual=576):
    """Planned layer-mean tokens of a configuration."""
    shape = PRESETS[model]
    strategy = resolve(load_config(path).chosen, shape, n_visual)
    return plan(strategy, shape, n_visual).usage.layer_mean_tokens


def published():
    """A table per budget, one of other budgets, two of other models, and the sources."""
    found = data()
    marks = found["benchmarks"]
    lines = []
    for tokens in (192, 128, 64):
        rows = [row for row in found["rows"] if row["tokens"] in (576, tokens)]
        lines += [f"## {tokens} tokens", "", *_table("rows", rows, marks), ""]
    lines += ["## Other budgets", "", *_table("others", found["others"], marks, "tokens"), ""]
    lines += ["## LLaVA-NeXT-7B, of 2880 tokens", "", *_table("next", found["next"], marks, "tokens"), ""]
    lines += ["## Qwen2.5-VL-7B, by share", "", *_table("qwen", found["qwen"], [], "share"), ""]
    lines += ["## Sources", ""]
    for name, source in found["sources"].items():
        title = f"[{source['title']}]({source['url']})" if "url" in source else source["title"]
        lines.append(f"- **{name}**: {title}, read {_read(source)}. {source['protocol']}")
    return "\n".join(lines)


def _read(source):
    return "there" if source["read"] == "source" else "second hand: only copies of the table were available to us"


def _table(name, rows, benchmarks, budget=None):
    """Rows of the list ``name``; ``budget`` is the key of what stands beside the method, if anything does."""
    left = [] if budget is None else [budget]
    head = ["method", *left, *benchmarks, "average", "source", "per layer"]
    align = ["---", *["---:"] * (len(left) + len(benchmarks) + 1), "---", "---:"]
    lines = [f"| {' | '.join(head)} |", f"|{'|'.join(align)}|"]
    for row in rows:
        method = row["method"] if row["method"] == "unpruned" else f"`{row['method']}`"
        method += f" ({row['note']})" if "note" in row else ""
        unit = " %" if budget == "share" else ""
        budgets = [f"{row[key]}{unit}" for key in left]
        numbers = row.get("numbers", [None] * len(benchmarks)) if benchmarks else []
        numbers = ["" if n is None else str(n) for n in numbers]
        average = f"{row['average']} %" if "average" in row else ""
        source = f"[{row['source']}](#sources)" if "source" in row else ""
        lines.append(f"| {' | '.join([method, *budgets, *numbers, average, source, _per_layer(row, name)])} |")
    return lines


def _per_layer(row, name, unit=""):
    """The planned layer mean, as a link to the configuration; of Qwen-VL's tokens, whose number varies, the share."""
    path = config_of(row)
    if path is None:
        return ""
    mean = layer_mean(path, *MODELS[name])
    text = f"{100 * mean / MODELS[name][1]:.1f} %" if name == "qwen" else f"{mean:.1f}{unit}"
    return f"[{text}]({path.relative_to(DOCS)})"


def presets():
    """The configurations at published budgets, with what they keep per layer, and released settings without one."""
    found = data()
    lines = []
    for name, title, key, columns in (
        ("rows", "LLaVA-1.5-7B, of 576 visual tokens", "tokens", (192, 128, 64)),
        ("next", "LLaVA-NeXT-7B, of 2880", "tokens", (640, 320, 160)),
        ("qwen", "Qwen2.5-VL-7B, share of the visual tokens", "share", None),
    ):
        rows = [row for row in found[name] if "config" in row]
        shown = columns or sorted({row[key] for row in rows}, reverse=True)
        lines += [f"| {title} | {' | '.join(map(str, shown))} |", f"|{'---|' * (len(shown) + 1)}"]
        for method, note in dict.fromkeys((row["method"], _variant(row)) for row in rows):
            cells = []
            for budget in shown:
                its = [row for row in rows if (row["method"], _variant(row), row[key]) == (method, note, budget)]
                cells.append(_per_layer(its[0], name, " per layer") if its else "")
            if any(cells):
                lines.append(f"| `{method}`{note} | {' | '.join(cells)} |")
        lines.append("")
    lines += ["| other settings | |", "|---|---|"]
    for row in found["settings"]:
        path = config_of(row)
        lines.append(f"| `{row['method']}` | [{row['what']}]({path.relative_to(DOCS)}) |")
    for name in ("others", "next"):
        for row in found[name]:
            if "config" in row and (name == "others" or row["tokens"] not in (640, 320, 160)):
                of = f"{row['tokens']} tokens of {MODELS[name][1]}" + (f": {row['note']}" if "note" in row else "")
                lines.append(f"| `{row['method']}` | [{of}]({config_of(row).relative_to(DOCS)}) |")
    return "\n".join(lines)


def _variant(row):
    """Which of two readings of a method a row has."""
    return " (plus)" if row.get("note") == "plus" else ""
