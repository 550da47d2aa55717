"""Charts of score against cost as geometry; the page draws them as SVG, and pictures as PNG."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from textwrap import shorten
from typing import TYPE_CHECKING, Final, NamedTuple

from tokentrim.compare.tables import against_random, budget_text, row_name, score_text
from tokentrim.runs.cells import REFERENCE
from tokentrim.runs.figures import CHARTED, Row

if TYPE_CHECKING:
    from tokentrim.drawing.style import Look

_WIDTH: Final = 400.0
_LEFT: Final = 40.0
_RIGHT: Final = 12.0
_TOP: Final = 14.0
_BOTTOM: Final = 36.0
_HEIGHT: Final = 300.0
_SMALL: Final = 230.0  # high, where a chart is about one family
_LINE: Final = 14.5  # between labels
_NEAR: Final = 0.62  # labels stand beside the points where these leave as much of the width free
_MARGIN: Final = 104.0  # for labels, where they do not
_LETTERS: Final = 18
_LETTER: Final = 6.4  # the width of one
_SHIFTS: Final = (0.0, -14.0, 14.0, 28.0)  # of a name on the left of its point
_BESIDE: Final = "random"  # what any method has to beat


class MethodFamily(NamedTuple):
    """What one small chart is about; all other methods are grey there."""

    title: str
    methods: tuple[str, ...]


@dataclass(frozen=True)
class Point:
    """One method at one budget."""

    x: float
    y: float
    low: float | None
    high: float | None
    said: str


@dataclass(frozen=True)
class Series:
    """One method; points of one seed are joined."""

    method: str
    look: Look
    lines: tuple[tuple[Point, ...], ...]

    @property
    def points(self) -> list[Point]:
        """All points."""
        return [point for line in self.lines for point in line]


@dataclass(frozen=True)
class Label:
    """The name of a series, joined to one of its points."""

    method: str
    text: str
    x: float
    y: float
    from_x: float
    from_y: float
    anchor: str


@dataclass(frozen=True)
class Tick:
    """One gridline."""

    at: float
    text: str


@dataclass(frozen=True)
class Chart:
    """One score against one cost, in the units of a view box."""

    title: str
    width: float
    height: float
    left: float
    right: float
    top: float
    bottom: float
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    reference: Point | None
    series: tuple[Series, ...]
    labels: tuple[Label, ...]
    front: tuple[tuple[float, float], ...]
    axis: str
    grey: tuple[tuple[tuple[float, float], ...], ...]


@dataclass(frozen=True)
class _Frame:
    """Where numbers lie in the view box."""

    right: float
    bottom: float
    x_high: float
    y_low: float
    y_high: float

    def x(self, value: float) -> float:
        return round(_LEFT + (self.right - _LEFT) * value / self.x_high, 2)

    def y(self, value: float) -> float:
        share = (value - self.y_low) / (self.y_high - self.y_low)
        return round(self.bottom - (self.bottom - _TOP) * share, 2)


def chart(rows: Sequence[Row], cost: str, look: Mapping[str, Look], family: MethodFamily | None = None) -> Chart | None:
    """The chart of one metric's rows against one cost; None where nothing was measured.

    Args:
        rows: of one metric.
        cost: one of ``CHARTED``.
        look: of every method.
        family: what the chart is about, beside ``random``; other methods are grey. Default: all.
    """
    rows = [row for row in rows if row["accuracy"] is not None and row.get(cost) is not None]
    drawn = [row for row in rows if row["method"] != REFERENCE]
    about = [row for row in drawn if family is None or row["method"] in family.methods]
    if not about:
        return None
    if family is not None and _BESIDE not in family.methods:
        about += [row for row in drawn if row["method"] == _BESIDE]
    methods = list(dict.fromkeys(row["method"] for row in about))
    height = max(_HEIGHT if family is None else _SMALL, _TOP + _BOTTOM + _LINE * (len(methods) + 1))
    reach = max((row[cost] for row in about if row[cost] <= _NEAR), default=1.0)
    beside = reach <= _NEAR and sum(row[cost] > _NEAR for row in about) <= len(about) / 2
    # Charts of one metric have one scale, whatever they are about.
    frame = _frame(rows, cost, _WIDTH - (_RIGHT if beside else _MARGIN), height - _BOTTOM)
    series = tuple(_series(method, about, cost, look[method], frame) for method in methods)
    column = frame.x(reach) + 16 if beside else frame.right + 14
    reference = next((row for row in rows if row["method"] == REFERENCE), None)
    share = rows[0].get("unit", "%") == "%"
    others = [row for row in drawn if row["method"] not in methods and look[row["method"]].role != "text"]
    return Chart(
        CHARTED[cost] if family is None else family.title,
        _WIDTH, height, _LEFT, frame.right, _TOP, frame.bottom,
        tuple(Tick(frame.x(value), f"{value:.0%}") for value in _steps(0, frame.x_high)),
        tuple(
            Tick(frame.y(value), f"{value:.0%}" if share else f"{value:g}")
            for value in _steps(frame.y_low, frame.y_high)
        ),
        None if reference is None else _point(reference, cost, frame),
        series,
        _labels(series, column, frame, None if reference is None else frame.y(reference["accuracy"])),
        _front(drawn, cost, look, frame),
        "share of the unpruned run" if family is None else f"{CHARTED[cost]}, share of unpruned",
        tuple(_path(others, cost, frame)),
    )  # fmt: skip


def _path(rows: Sequence[Row], cost: str, frame: _Frame) -> Iterator[tuple[tuple[float, float], ...]]:
    """One line per method and seed, without more ado."""
    lines: dict[tuple[str, object], list[Row]] = {}
    for row in sorted(rows, key=lambda row: row[cost]):
        lines.setdefault((row["method"], row["seed"]), []).append(row)
    for line in lines.values():
        yield tuple((frame.x(row[cost]), frame.y(row["accuracy"])) for row in line)


def _frame(rows: Sequence[Row], cost: str, right: float, bottom: float) -> _Frame:
    """Axes that begin at zero: a share of the unpruned run, and a score."""
    highest = max(row["accuracy_high"] or row["accuracy"] for row in rows)
    lowest = min(row["accuracy_low"] or row["accuracy"] for row in rows)
    top = 1.0 if rows[0].get("unit", "%") == "%" else highest * 1.05 or 1.0
    return _Frame(right, bottom, max(1.0, *(row[cost] for row in rows)), min(0.0, lowest), top)


def _steps(low: float, high: float) -> list[float]:
    """About five round numbers from ``low`` to ``high``."""
    rough = (high - low) / 4
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(step * power for step in (1, 2, 2.5, 5, 10) if step * power >= rough - 1e-12)
    first = -(-low // step)
    found = [(first + n) * step for n in range(12)]
    return [value for value in found if value <= high + 1e-9]


def _point(row: Row, cost: str, frame: _Frame) -> Point:
    """A row's place, and what is said of it."""
    low, high = (None if row[name] is None else frame.y(row[name]) for name in ("accuracy_low", "accuracy_high"))
    lines = [" · ".join(part for part in (row_name(row), budget_text(row)) if part), f"score {score_text(row)}"]
    lines += [f"{title}: {100 * row[name]:.1f} %" for name, title in CHARTED.items() if row.get(name) is not None]
    p = row.get("p_vs_random_adjusted")
    lines += [f"vs random: {against_random(row)}"] if p is not None else []
    return Point(frame.x(row[cost]), frame.y(row["accuracy"]), low, high, "\n".join(lines))


def _series(method: str, rows: Sequence[Row], cost: str, look: Look, frame: _Frame) -> Series:
    """One method's points: joined over its budgets, seed by seed. Text-only runs are points of their own."""
    own = sorted((row for row in rows if row["method"] == method), key=lambda row: row[cost])
    lines: dict[object, list[Point]] = {}
    for row in own:
        joined = (row["boundary"],) if look.role == "text" else row["seed"]
        lines.setdefault(joined, []).append(_point(row, cost, frame))
    return Series(method, look, tuple(tuple(line) for line in lines.values()))


def _labels(series: Sequence[Series], column: float, frame: _Frame, unpruned: float | None) -> tuple[Label, ...]:
    """Names beside the last points, moved apart where they would touch, and below the line of the unpruned run; a point
    beyond them has its name on its left, higher or lower where that is taken.
    """
    beside: list[tuple[Series, Point]] = []
    beyond: list[tuple[Series, Point]] = []
    found: list[Label] = []
    for one in series:
        last = max(one.points, key=lambda point: point.x)
        if one.look.role == "text":
            found.append(Label(one.method, _short(one.method), last.x, last.y + 17, last.x, last.y, "middle"))
        else:
            (beyond if last.x > column else beside).append((one, last))
    beside.sort(key=lambda pair: pair[1].y)
    top = _TOP + 4
    if unpruned is not None and abs(unpruned - top) < _LINE:
        top = unpruned + _LINE
    heights = _apart([point.y for _, point in beside], top, frame.bottom - 6)
    room = column + _LETTER * max((len(_short(one.method)) + 2 for one, _ in beside), default=0)
    for (one, point), y in zip(beside, heights, strict=True):
        found.append(Label(one.method, _short(one.method), column, y, point.x, point.y, "start"))
    for one, point in beyond:
        text = _short(one.method)
        crowded = point.x - 8 - _LETTER * len(text) < room
        taken = [y - 4 for y in heights] if crowded else []
        lines = [] if unpruned is None else [unpruned]

        def free(y: float, taken: Sequence[float] = taken, lines: Sequence[float] = lines) -> bool:
            return all(abs(y - other) >= _LINE for other in taken) and all(abs(y - line) >= _LINE / 2 for line in lines)

        shift = next((shift for shift in _SHIFTS if free(point.y + shift)), 0.0)
        found.append(Label(one.method, text, point.x - 8, point.y + shift + 4, point.x, point.y, "end"))
    return tuple(found)


def _short(method: str) -> str:
    return shorten(method, _LETTERS, placeholder="…") or method[:_LETTERS]


def _apart(places: Sequence[float], low: float, high: float) -> list[float]:
    """Ascending places moved as little as it takes to keep a line's distance, within bounds."""
    clusters: list[list[float]] = []  # [sum of wanted first places, number of members]
    for place in places:
        clusters.append([place, 1.0])
        while len(clusters) > 1:
            above, below = clusters[-2], clusters[-1]
            if _first(below, low, high) >= _first(above, low, high) + _LINE * above[1]:
                break
            clusters[-2:] = [[above[0] + below[0] - _LINE * above[1] * below[1], above[1] + below[1]]]
    found: list[float] = []
    for cluster in clusters:
        first = _first(cluster, low, high)
        found += [round(first + _LINE * n, 2) for n in range(int(cluster[1]))]
    return found


def _first(cluster: Sequence[float], low: float, high: float) -> float:
    """Where a cluster's first member stands best."""
    total, members = cluster
    return max(low, min(total / members, high - _LINE * (members - 1)))


def _front(rows: Sequence[Row], cost: str, look: Mapping[str, Look], frame: _Frame) -> tuple[tuple[float, float], ...]:
    """Corners of the staircase above which no method or control lies: nothing as cheap scores higher, by the means."""
    rivals = [row for row in rows if look[row["method"]].role in ("method", "control")]
    rivals.sort(key=lambda row: (row[cost], -row["accuracy"]))
    corners: list[tuple[float, float]] = []
    best = float("-inf")
    for row in rivals:
        if row["accuracy"] > best:
            x, y = frame.x(row[cost]), frame.y(row["accuracy"])
            corners += [(x, corners[-1][1])] if corners else []
            corners.append((x, y))
            best = row["accuracy"]
    return (*corners, (frame.right, corners[-1][1])) if corners else ()
