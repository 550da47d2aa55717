"""What each strategy costs, measured: read from a comparison's summary, kept for the tables of the docs.

``python -m tests.costs runs/methods/summary.json`` writes docs/results/costs.json, and ``python tests/test_docs.py``
then the tables. The comparison is docs/examples/configs/compare-methods.yaml, on an idle machine.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

FILE = Path(__file__).parent.parent / "docs/results/costs.json"
BUDGET = 0.25
NOT_MEASURED = "not measured"


def costs_of(summary: dict[str, Any]) -> dict[str, Any]:
    """Times of short answers per method, at :data:`BUDGET` where it has a knob, as shares of the unpruned run's."""
    names = {row["method"]: row["strategy"]["name"] for row in summary["cells"] if "name" in (row["strategy"] or {})}
    rows = [row for row in summary["overall"] if row["metric"] == "exact" and row["budget_requested"] in (None, BUDGET)]
    whole = next(row for row in rows if row["method"] == "none")["prefill_seconds"]
    found: dict[str, Any] = {}
    for row in rows:
        label = row["method"]
        if label in names and sum(one["method"] == label for one in rows) == 1:
            found[label] = {
                "strategy": names[label],
                "layer_mean_ratio": round(row["layer_mean_ratio"], 3),
                "flops_ratio": round(row["flops_ratio"], 3),
                "prefill_time_ratio": round(row["prefill_seconds"] / whole, 3),
                "selection_share": round(row["selection_seconds"] / row["prefill_seconds"], 3),
            }
    return {
        "command": summary["command"].split(" --out")[0],
        "versions": summary["versions"],
        "machine": "2-core CPU, float32, one thread; the 25 % budget alone, without the timing pass",
        "model": "testbed",
        "batch_size": summary["config"]["batch_size"],
        "rows": found,
    }


def cell_of(name: str) -> str:
    """The entry of a strategy in the tables."""
    rows = json.loads(FILE.read_text(encoding="utf-8"))["rows"]
    labels = [label for label, row in rows.items() if row["strategy"] == name]
    if not labels:
        return NOT_MEASURED
    label = name if name in labels else labels[0]
    row = rows[label]
    which = "" if label == name else f" ({label})"
    return f"{row['prefill_time_ratio']:.2f} × prefill, {row['selection_share']:.1%} of it selecting{which}"


def table() -> str:
    """All rows."""
    lines = [
        "| method | tokens per layer | FLOPs | prefill time | of it selecting |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    for label, row in json.loads(FILE.read_text(encoding="utf-8"))["rows"].items():
        shares = (row["layer_mean_ratio"], row["flops_ratio"], row["prefill_time_ratio"], row["selection_share"])
        lines.append(f"| {label} | {' | '.join(f'{100 * share:.1f}' for share in shares)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    made = costs_of(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
    FILE.write_text(json.dumps(made, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
