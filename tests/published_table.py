"""Tables of published numbers, made of ``docs/published.yaml`` and of plans of the configurations beside it."""

from __future__ import annotations

from pathlib import Path

import yaml

from tokentrim.config.specs import load_config, resolve
from tokentrim.counting.forecast import plan
from tokentrim.counting.published import PRESETS

DOCS = Path(__file__).parent.parent / "docs"
CONFIGS = DOCS / "examples/configs/published"
MODEL = "llava-1.5-7b"


def data():
    return yaml.safe_load((DOCS / "published.yaml").read_text(encoding="utf-8"))


def config_of(row):
    return (CONFIGS / f"{row['config']}.yaml").resolve() if "config" in row else None


def layer_mean(path):
    """Planned layer-mean tokens of a configuration on LLaVA-1.5-7B."""
    shape = PRESETS[MODEL]
    strategy = resolve(load_config(path).chosen, shape, 576)
    return plan(strategy, shape, 576).usage.layer_mean_tokens


def published():
    """A table per budget, one of other budgets, and the sources."""
    found = data()
    lines = []
    for tokens in (192, 128, 64):
        rows = [row for row in found["rows"] if row["tokens"] in (576, tokens)]
        lines += [f"## {tokens} tokens", "", *_table(rows, found["benchmarks"], budget=False), ""]
    lines += ["## Other budgets", "", *_table(found["others"], found["benchmarks"], budget=True), ""]
    lines += ["## Sources", ""]
    for name, source in found["sources"].items():
        lines.append(f"- **{name}**: [{source['title']}]({source['url']}), read {_read(source)}. {source['protocol']}")
    return "\n".join(lines)


def _read(source):
    return "there" if source["read"] == "source" else "second hand: only copies of the table were available to us"


def _table(rows, benchmarks, *, budget):
    left, right = (["tokens"], []) if budget else ([], ["per layer"])
    head = ["method", *left, *benchmarks, "source", *right]
    align = ["---", *["---:"] * (len(left) + len(benchmarks)), "---", *["---:"][: len(right)]]
    lines = [f"| {' | '.join(head)} |", f"|{'|'.join(align)}|"]
    for row in rows:
        name = row["method"] if row["method"] == "unpruned" else f"`{row['method']}`"
        name += f" ({row['note']})" if "note" in row else ""
        numbers = ["" if n is None else str(n) for n in row.get("numbers", [None] * len(benchmarks))]
        source = f"[{row['source']}](#sources)" if "source" in row else ""
        cells = [name, *([str(row["tokens"])] if budget else []), *numbers, source]
        if not budget:
            path = config_of(row)
            cells.append("" if path is None else f"[{layer_mean(path):.1f}]({path.relative_to(DOCS)})")
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def presets():
    """The configurations at the three budgets, with what they keep per layer."""
    methods = list(dict.fromkeys(row["method"] for row in data()["rows"] if "config" in row))
    lines = ["| method | 192 | 128 | 64 |", "|---|---|---|---|"]
    for method in methods:
        cells = []
        for tokens in (192, 128, 64):
            row = next(r for r in data()["rows"] if r["method"] == method and r["tokens"] == tokens and "config" in r)
            path = config_of(row)
            cells.append(f"[{layer_mean(path):.1f} per layer]({path.relative_to(DOCS)})")
        lines.append(f"| `{method}` | {' | '.join(cells)} |")
    return "\n".join(lines)
