"""Budgets as shares of measured prefill time: knobs that are solved by measuring, before any cell runs.

No plan knows time, so a method is timed against the unpruned run at several settings of its knob, on questions of the
calibration split, and a line through the times near the budget says which setting is the costliest that is not above
it. What was found is kept in the results folder and in the head of every cell: nobody measures it again.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import combinations, groupby
from statistics import median
from typing import Any, Final

from tokentrim.compare.folder import ResultsFolder
from tokentrim.compare.timing import Arm, pairs, timed_task, timed_work
from tokentrim.config.specs import strategy_from
from tokentrim.contracts.strategy import Strategy
from tokentrim.counting.forecast import planned_layer_tokens
from tokentrim.counting.solve import Knob
from tokentrim.errors import StrategyError, complaint
from tokentrim.progress import Progress
from tokentrim.runs.batches import Batch
from tokentrim.runs.cells import Cell, Solved, versions
from tokentrim.runs.downscale import EQUAL
from tokentrim.runs.results import CellResult
from tokentrim.runs.specs import MEASURED, digest

_SETTINGS: Final = 9  # measured in each round
_NEAR: Final = 6  # a round after the first looks at this part of the knob's range on either side of what was found
_ROUNDS: Final = 4
_DOUBT: Final = 0.1  # share of the budget above which what the line says is not believed
_SPLIT: Final = "calibration"

Share = Callable[[Strategy, bool], dict[str, Any]]
"""Measures a strategy; what is remembered does where the second argument is False."""

Cost = Callable[[int, bool], float]
"""Measures the share of prefill time at an index of the knob; anew where the second argument is True."""


def solve_measured(
    cells: Sequence[Cell], finished: Mapping[str, CellResult], folder: ResultsFolder, told: Progress
) -> list[Cell]:
    """The same cells, those that are matched by time with their knobs solved.

    To be called while no cell runs. Costs nothing where no budget is a share of time.
    """
    from tokentrim.runs.stopwatch import settled

    found: dict[str, Solved] = {}
    for target, listed in groupby(cells, key=lambda cell: cell.model):
        members = list(listed)
        due = {_key(cell): cell for cell in members if cell.match == MEASURED and cell.budget is not None}
        held = {key: folder.measured("knobs", key) for key in due}
        pending = [key for key, row in held.items() if row is None]
        if any(cell.key not in finished and _key(cell) in pending for cell in members if cell.match == MEASURED):
            told.say(f"measuring prefill time on {target.name} to solve {len(pending)} budgets")
            told.start(len(pending))
            loaded = target.load()
            task = timed_task(members)
            shares: dict[str, dict[Strategy, dict[str, Any]]] = {}
            for key in pending:
                asked = due[key]
                if asked.timing is None or asked.budget is None:
                    continue
                cell = next(other for other in members if other.task.task == task)
                work = timed_work(cell, loaded, _SPLIT, asked.timing.questions)
                known = shares.setdefault(asked.method, {})
                with settled():
                    held[key] = _solve(asked, work.batches[-1], _measurer(Arm(work), asked, known))
                folder.keep("knobs", key, held[key])
                told.step(f"{asked.method} at {asked.budget:.0%}")
        found |= {key: _solved(row) for key, row in held.items() if row is not None}
    return [
        replace(cell, solved=found.get(_key(cell))) if cell.match == MEASURED and cell.budget is not None else cell
        for cell in cells
    ]


def _key(cell: Cell) -> str:
    """What a measurement depends on: the same for all tasks and seeds of a method."""
    spec = {name: value for name, value in _spec(cell).items() if name != "seed"}
    settings = None if cell.timing is None else cell.timing.model_dump()
    model = [cell.model.fingerprint, *cell.model.placement]
    return digest({"model": model, "versions": versions(), "strategy": spec, "budget": cell.budget, "timing": settings})


def _spec(cell: Cell) -> dict[str, Any]:
    """Whose knob is turned: the cell's own strategy, or the one whose tokens smaller pictures are to be worth."""
    return strategy_from(EQUAL).as_dict() if cell.control is not None else cell.strategy.as_dict()


def _measurer(unpruned: Arm, cell: Cell, known: dict[Strategy, dict[str, Any]]) -> Share:
    """Measures the share of prefill time that a strategy takes; settings that were measured before are remembered."""
    from tokentrim.runs.spread import Spread

    repeats = 0 if cell.timing is None else cell.timing.repeats

    def share(strategy: Strategy, anew: bool) -> dict[str, Any]:
        if anew or strategy not in known:
            timed = pairs(unpruned, Arm(unpruned.work, strategy), repeats, 1)
            spread = Spread.of([mine.prefill / theirs.prefill for theirs, mine in timed])
            known[strategy] = {"share": spread.median, "low": spread.low, "high": spread.high, "repeats": repeats}
        return known[strategy]

    return share


def _solve(cell: Cell, batch: Batch, share: Share) -> dict[str, Any]:
    """The costliest setting of the knob whose share is not above the budget, by measurements; as plain data."""
    target, shape = cell.budget or 1.0, cell.model.shape
    probes: list[dict[str, Any]] = []
    try:
        knob = strategy_from(_spec(cell)).strategy.knob(max(batch.n_visual, shape.n_layers))
    except StrategyError as reason:
        return {"strategy": None, "reason": str(reason), "about": None}

    def tokens(index: int) -> int:
        return sum(planned_layer_tokens(knob.at(index).spatial_parts, shape, batch.n_visual))

    def cost(index: int, anew: bool) -> float:
        found = share(knob.at(index), anew)
        probes.append({"value": knob.value(index), **found})
        return found["share"]

    ends = (0, knob.steps) if tokens(knob.steps) > tokens(0) else (knob.steps, 0)
    if tokens(ends[0]) == tokens(ends[1]):
        return _unreachable(knob, probes, "change the tokens of prefill", "it acts on other costs alone")
    if cost(ends[0], False) > target:
        least = f"{probes[-1]['share']:.3f}"
        return _unreachable(knob, probes, f"reach the share {target} of the unpruned prefill time", f"at least {least}")
    index = ends[1] if cost(ends[1], False) <= target else _searched(ends, tokens, cost, target)
    about = {
        "requested": target,
        # The last time that it was measured: no part of the search.
        "realised": [probe for probe in probes if probe["value"] == knob.value(index)][-1]["share"],
        "knob": knob.name,
        "value": knob.value(index),
        "probes": probes,
    }
    return {"strategy": knob.at(index).spec(), "reason": "", "about": about}


def _searched(ends: tuple[int, int], tokens: Callable[[int], int], cost: Cost, target: float) -> int:
    """The costliest index whose share is not above the target, by a line through measured shares.

    The first end's share is not above the target, the second's is. Neighbouring settings differ by far less than two
    measurements of one of them, so none decides alone: settings are measured evenly, over the whole range and then near
    where the line through their shares meets the target, and it stands for those between.
    """
    step = 1 if ends[1] > ends[0] else -1
    most, shares = abs(ends[1] - ends[0]), dict[int, float]()  # places are counted from the cheapest end
    found, first, last, near = 0, 0, most, max(2, most // _NEAR)
    for round_ in range(_ROUNDS):
        for number in range(_SETTINGS):
            place = first + number * (last - first) // (_SETTINGS - 1)
            if place not in shares:
                shares[place] = cost(ends[0] + step * place, False)
        within = {place: share for place, share in shares.items() if first <= place <= last}
        line = _line(within, lambda place: tokens(ends[0] + step * place))
        if line is None:
            found = _fitting(shares, target)
            break
        found = max(0, bisect_right(range(most + 1), target, key=line) - 1)
        if round_ and first <= found <= last:
            break
        first, last = max(0, found - near), min(most, found + near)
    if cost(ends[0] + step * found, True) > (1 + _DOUBT) * target:  # what is reported is no part of the search
        found = _fitting({place: share for place, share in shares.items() if place < found}, target)
        cost(ends[0] + step * found, True)
    return ends[0] + step * found


def _fitting(shares: Mapping[int, float], target: float) -> int:
    """The costliest measured place that was not above the target, for times that are no line."""
    return max((place for place, share in shares.items() if share <= target), default=0)


def _line(shares: Mapping[int, float], tokens: Callable[[int], int]) -> Callable[[int], float] | None:
    """Share of time by place, in proportion to tokens: the median slope (Theil and Sen), of which a quarter may be off.

    None where more tokens take no more time than fewer, as far as can be measured.
    """
    points = [(tokens(place), share) for place, share in shares.items()]
    slopes = [(b - a) / (y - x) for (x, a), (y, b) in combinations(points, 2) if x != y]
    slope = median(slopes) if slopes else 0.0
    intercept = median(share - slope * count for count, share in points)
    return (lambda place: intercept + slope * tokens(place)) if slope > 0 else None


def _unreachable(knob: Knob[Strategy], probes: Sequence[dict[str, Any]], must: str, got: str) -> dict[str, Any]:
    reason = complaint(
        f"budget knob {knob.name!r} of strategy {knob.whom!r}", must, got, "raise the budget, or match another cost"
    )
    return {"strategy": None, "reason": reason, "about": {"knob": knob.name, "probes": list(probes)}}


def _solved(row: Mapping[str, Any]) -> Solved:
    """What a measurement found, from its plain data."""
    strategy = row["strategy"]
    return Solved(None if strategy is None else strategy_from(strategy), row["about"] or {}, row["reason"])
