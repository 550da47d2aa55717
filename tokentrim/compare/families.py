"""Many methods on several small charts: by where they act, a few on each, in the order of the comparison."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Final

from tokentrim.compare.fronts import Chart, MethodFamily, chart
from tokentrim.compare.tables import Data
from tokentrim.plugins.loader import registry
from tokentrim.runs.figures import CHARTED, Row

if TYPE_CHECKING:
    from tokentrim.drawing.style import Look

TOGETHER: Final = 10
"""Methods up to which one chart shows all of them."""
_MOST: Final = 7  # that a small chart shows
_WHOLE: Final = 0.99  # a cost from which nothing was saved
_STAGES: Final = {
    "input": "before the language model",
    "prefill": "inside the language model",
    "decode": "in the cache, while answering",
    "": "other methods",
}
_CONTROLS: Final = "controls and bounds"


def families(data: Data, look: Mapping[str, Look]) -> list[MethodFamily]:
    """The small charts of a comparison; none where one chart can show all of its methods."""
    methods = [name for name, found in look.items() if found.role == "method"]
    if len(methods) <= TOGETHER:
        return []
    names = {row["method"]: (row["strategy"] or {}).get("name", "") for row in data["cells"]}
    by_stage: dict[str, list[str]] = {stage: [] for stage in _STAGES}
    for method in methods:
        by_stage[_stage(str(names.get(method, "")))].append(method)
    found: list[MethodFamily] = []
    for stage, members in by_stage.items():
        parts = -(-len(members) // _MOST)
        ends = [round(len(members) * part / parts) for part in range(parts + 1)] if parts else []
        for part, (first, end) in enumerate(pairwise(ends), 1):
            title = f"{_STAGES[stage]} ({part} of {parts})" if parts > 1 else _STAGES[stage]
            found.append(MethodFamily(title, tuple(members[first:end])))
    controls = tuple(name for name, found in look.items() if found.role in ("control", "bound", "text"))
    return [*found, *([MethodFamily(_CONTROLS, controls)] if controls else [])]


def _stage(name: str) -> str:
    """Where a strategy acts, as it was registered; "" for compositions and for what is not installed here."""
    known = registry("strategy")
    stage = str(known.entry(name).tags.get("stage", "")) if known.knows(name) else ""
    return stage if stage in _STAGES else ""


def telling_cost(rows: Sequence[Row]) -> str:
    """The cost that the fewest methods leave whole: what small charts draw scores against."""

    def spared(cost: str) -> int:
        return len({row["method"] for row in rows if row.get(cost) is None or row[cost] >= _WHOLE})

    return min(CHARTED, key=spared)


def charts_of(data: Data, rows: Sequence[Row], look: Mapping[str, Look]) -> list[Chart]:
    """The charts of one metric's rows: all methods against each cost, or each family against the telling one."""
    small = families(data, look)
    found = (
        [chart(rows, telling_cost(rows), look, family) for family in small]
        if small
        else [chart(rows, cost, look) for cost in CHARTED]
    )
    return [one for one in found if one is not None]
