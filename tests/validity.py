"""Do methods stand on busy pictures as on photographs? Rank correlations with what papers print for LLaVA-1.5-7B.

``python -m tests.validity runs/busy`` reads a finished comparison (docs/examples/configs/compare-busy.yaml) and
docs/published.yaml, and writes the tables of docs/results/validity.md. What is said about them there is by hand.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from tests.published_table import data
from tokentrim.testbed.busy.tasks import TASKS
from tokentrim.testbed.training.busy.separation import RESAMPLES, resampled

PAGE = Path(__file__).parent.parent / "docs/results/validity.md"
BUDGETS = {0.33: 192, 0.22: 128, 0.11: 64}
AGAINST = {"coarse": ("GQA", "MMB", "POPE"), "fine": ("TextVQA",)}
FEWEST = 4  # methods that a correlation needs
APART = 4  # ranks from which a method stands elsewhere
DRAWS = RESAMPLES
_BEGIN, _END = "<!-- results:begin -->", "<!-- results:end -->"
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Standing:
    """Methods of one grain at one budget: shares of the unpruned score that they keep, here and as published.

    drawn: the shares here with questions drawn anew, [draws, methods]. of: benchmarks behind each published share.
    """

    methods: list[str]
    here: Floats
    drawn: Floats
    published: Floats
    of: list[tuple[str, ...]]

    def correlations(self) -> Floats:
        """Spearman's rho of what was measured, then with questions and methods drawn anew, [1 + draws]."""
        picks = np.random.default_rng(20).integers(len(self.methods), size=self.drawn.shape)
        drawn = _spearman(np.take_along_axis(self.drawn, picks, 1), self.published[picks])
        return np.concatenate([_spearman(self.here[None], self.published[None]), drawn])

    def apart(self) -> Floats:
        """Ranks by which each method stands better here than as published; ties share a rank."""
        return rankdata(self.here) - rankdata(self.published)


def published_share(found: dict[str, Any], method: str, tokens: int, marks: tuple[str, ...]) -> dict[str, float]:
    """Shares of the unpruned number by benchmark, the mean of all sources; those by layer mean go before others."""
    rows = [row for row in found["rows"] if (row["method"], row["tokens"]) == (method, tokens) and "numbers" in row]
    rows = [row for row in rows if row.get("note") == "layer mean"] or rows
    whole = next(row for row in found["rows"] if row["method"] == "unpruned")["numbers"]
    shares: dict[str, float] = {}
    for mark in marks:
        place = found["benchmarks"].index(mark)
        numbers = [row["numbers"][place] for row in rows if row["numbers"][place] is not None]
        if numbers:
            shares[mark] = float(np.mean(numbers)) / whole[place]
    return shares


def standing(folder: Path, grain: str, budget: float) -> Standing:
    """Every method of a comparison that some source prints numbers of, at the budget that stands for its tokens."""
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    lines = [json.loads(line) for line in (folder / "results.jsonl").read_text(encoding="utf-8").splitlines()]
    names = {row["method"]: (row["strategy"] or {}).get("name") for row in summary["cells"]}
    tasks = [name for name, task in TASKS.items() if task.grain == grain]
    scores: dict[str, dict[str, dict[str, float]]] = {}
    for line in lines:
        if line["task"] in tasks and line["budget_requested"] in (None, budget) and line["score"] is not None:
            of_task = scores.setdefault(line["method"], {}).setdefault(line["task"], {})
            of_task[line["sample"]] = line["score"]
    whole = scores.pop("none")
    complete = [label for label, answered in scores.items() if answered.keys() == whole.keys()]
    found, methods, shares, of = data(), [], [], []
    for label in complete:
        printed = published_share(found, names[label], BUDGETS[budget], AGAINST[grain])
        if printed and names[label] not in [names[other] for other in methods]:
            methods.append(label)
            shares.append(np.mean([*printed.values()]))
            of.append(tuple(printed))
    kept, drawn = _kept([[whole[task], *(scores[label][task] for label in methods)] for task in whole])
    return Standing([names[label] for label in methods], kept, drawn, np.array(shares), of)


def _kept(tasks: list[list[dict[str, float]]]) -> tuple[Floats, Floats]:
    """Shares of the first row's mean over tasks, [methods], and with questions drawn anew, [draws, methods]."""
    grids: list[Floats] = []
    for rows in tasks:
        asked = [question for question in rows[0] if all(question in row for row in rows)]
        grids.append(np.array([[row[question] for question in asked] for row in rows]))
    mean, some = resampled(grids)
    return mean[1:] / mean[0], some[:, 1:] / some[:, :1]


def _spearman(first: Floats, second: Floats) -> Floats:
    """Rank correlation of every row; NaN where a row has one value only."""
    a, b = (rankdata(x, axis=1) for x in (first, second))
    a, b = (x - x.mean(1, keepdims=True) for x in (a, b))
    with np.errstate(invalid="ignore"):
        return (a * b).sum(1) / np.sqrt((a**2).sum(1) * (b**2).sum(1))


def _interval(rho: Floats) -> str:
    low, high = np.nanpercentile(rho[1:], (2.5, 97.5))
    return f"{rho[0]:.2f} [{low:.2f}, {high:.2f}]".replace("-", "−")


def tables(folder: Path) -> str:
    """The correlations, and below them every method, with what stands elsewhere than on photographs."""
    budgets = [f"{share:.0%} / {tokens}" for share, tokens in BUDGETS.items()]
    lines = [
        f"| grain | against | {' | '.join(budgets)} | mean |",
        f"|---|---|{'---:|' * (len(budgets) + 1)}",
    ]
    below: list[str] = []
    for grain, marks in AGAINST.items():
        found = {budget: standing(folder, grain, budget) for budget in BUDGETS}
        found = {budget: one for budget, one in found.items() if len(one.methods) >= FEWEST}
        rhos = {budget: one.correlations() for budget, one in found.items()}
        cells = [
            f"{_interval(rhos[budget])}, {len(found[budget].methods)} methods" if budget in rhos else "–"
            for budget in BUDGETS
        ]
        mean = _interval(np.mean([*rhos.values()], 0)) if rhos else "–"
        lines.append(f"| {grain} | {', '.join(marks)} | {' | '.join(cells)} | {mean} |")
        below += ["", *_methods(grain, marks, found)]
    return "\n".join([*lines, *below])


def _methods(grain: str, marks: tuple[str, ...], found: dict[float, Standing]) -> list[str]:
    """Every method of one grain, budget beside budget: share here, share published, ranks apart."""
    heads = [f"{share:.0%} here | {BUDGETS[share]} there | ranks apart" for share in found]
    lines = [f"### {grain.capitalize()} questions", "", f"| method | {' | '.join(heads)} |"]
    lines.append(f"|---|{'---:|' * (3 * len(found))}")
    names = list(dict.fromkeys(name for one in found.values() for name in one.methods))
    elsewhere: dict[str, list[str]] = {}
    for name in names:
        cells = [f"`{name}`"]
        for budget, one in found.items():
            if name not in one.methods:
                cells += ["", "", ""]
                continue
            i = one.methods.index(name)
            apart = one.apart()[i]
            some = "" if one.of[i] == marks else f" ({', '.join(one.of[i])})"
            step = f"{apart:+.3g}".replace("-", "−")
            cells += [f"{100 * one.here[i]:.1f}", f"{100 * one.published[i]:.1f}{some}", step]
            if abs(apart) >= APART:
                where = "higher" if apart > 0 else "lower"
                elsewhere.setdefault(where, []).append(f"`{name}` at {budget:.0%} ({step})")
        lines.append(f"| {' | '.join(cells)} |")
    for where in ("higher", "lower"):
        told = ", ".join(elsewhere.get(where, [])) or "none"
        lines += ["", f"Stand {where} here by {APART} ranks or more: {told}."]
    return lines


def main(folder: Path) -> None:
    """Write the tables into the page."""
    text = PAGE.read_text(encoding="utf-8")
    before, rest = text.split(_BEGIN)
    PAGE.write_text(f"{before}{_BEGIN}\n{tables(folder)}\n{_END}{rest.split(_END)[1]}", encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
