"""Questions about busy pictures: coarse ones, which any part of a large thing answers, fine ones, and long answers."""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Literal, TypeVar

import numpy as np
from PIL import Image

from tokentrim.contracts.tasks import Evidence, Metric, Sample
from tokentrim.testbed.busy.render import render
from tokentrim.testbed.busy.scenes import (
    PATCH,
    Box,
    BusyScene,
    Fine,
    Large,
    Small,
    centre_patch,
    corner_box,
    draw_scene,
    patch_box,
    place_of,
)
from tokentrim.testbed.busy.vocabulary import CORNERS, LARGE, NO, SMALL, YES
from tokentrim.testbed.tasks import DrawnTask, list_f1
from tokentrim.testbed.vocabulary import COLUMNS, ROWS

_T = TypeVar("_T")
Grain = Literal["coarse", "fine", "long"]
_CHUNK: Final = 16  # scenes per seed; a constant, because it decides which scenes exist
_OTHER_WEIGHT: Final = 0.5
_APART: Final = 24  # pixels between centres from which one thing counts as left of another


@dataclass(frozen=True)
class NeededRegion:
    """A region that an answer needs; any one of its patches shows what is needed.

    box: the patch in its middle, with which an answer can be given. All of a large thing would fill a budget with its
    edges: with a ninth of the tokens 79 % of calibration questions how many there are were then answered rightly, and
    95 % with middle patches.
    """

    box: Box
    patches: tuple[int, ...]


@dataclass(frozen=True)
class BusyAsked:
    """A question about a scene, its answer, and all that the answer needs."""

    question: str
    answer: str
    needs: tuple[NeededRegion, ...]


Question = Callable[[np.random.Generator, BusyScene], BusyAsked | None]


def region_of(thing: Large | Small | Fine) -> NeededRegion:
    """A thing: any patch of a large one tells what it is, the middle one of a small one."""
    return _region(thing.box, thing.shown if isinstance(thing, Large) else (centre_patch(thing.box),))


def _region(around: Box, patches: tuple[int, ...]) -> NeededRegion:
    middle = ((around[0] + around[2] - PATCH) / 2, (around[1] + around[3] - PATCH) / 2)
    boxes = map(patch_box, patches)
    return NeededRegion(min(boxes, key=lambda box: math.dist(box[:2], middle)), patches)


def _of_corner(scene: BusyScene, quarter: int) -> NeededRegion:
    return _region(corner_box(quarter), scene.corners[quarter])


def all_needs(scene: BusyScene) -> tuple[NeededRegion, ...]:
    """Everything that any question about a scene may need."""
    printed = [fine for thing in scene.large for fine in (thing.digit, thing.mark) if fine is not None]
    letters = [letter for sign in scene.signs for letter in sign.letters]
    return (
        *(region_of(thing) for thing in (*scene.large, *scene.small, *printed, *letters)),
        *(_of_corner(scene, quarter) for quarter in range(4)),
    )


def _one(rng: np.random.Generator, options: Sequence[_T]) -> _T | None:
    return options[int(rng.integers(len(options)))] if options else None


def ask_ground(rng: np.random.Generator, scene: BusyScene) -> BusyAsked | None:
    """Material in one corner."""
    quarter = int(rng.integers(4))
    return BusyAsked(f"ground {CORNERS[quarter]} ?", scene.grounds[quarter], (_of_corner(scene, quarter),))


def ask_there(rng: np.random.Generator, scene: BusyScene) -> BusyAsked | None:
    """Is there a large thing of a kind? Half of the kinds that are asked for are not."""
    there = {thing.kind: thing for thing in scene.large}
    yes = bool(rng.random() < 0.5)
    kind = _one(rng, [kind for kind in LARGE if (kind in there) == yes])
    if kind is None:
        return None
    return BusyAsked(f"is there {kind} ?", YES if yes else NO, (region_of(there[kind]),) if yes else ())


def ask_color(rng: np.random.Generator, scene: BusyScene) -> BusyAsked | None:
    """Colour of a large thing."""
    thing = _one(rng, scene.large)
    return thing and BusyAsked(f"color of {thing.kind} ?", thing.color, (region_of(thing),))


def _across(thing: Large) -> float:
    return (thing.box[1] + thing.box[3]) / 2


def ask_left(rng: np.random.Generator, scene: BusyScene) -> BusyAsked | None:
    """Is one large thing left of another?"""
    pairs = [(a, b) for a in scene.large for b in scene.large if abs(_across(a) - _across(b)) >= _APART]
    pair = _one(rng, pairs)
    if pair is None:
        return None
    first, second = pair
    answer = YES if _across(first) < _across(second) else NO
    return BusyAsked(f"is {first.kind} left of {second.kind} ?", answer, (region_of(first), region_of(second)))


def ask_count_large(rng: np.random.Generator, scene: BusyScene) -> BusyAsked | None:
    """How many large things there are."""
    del rng
    return BusyAsked("count large ?", str(len(scene.large)), tuple(region_of(thing) for thing in scene.large))


def ask_sign(rng: np.random.Generator, scene: BusyScene) -> BusyAsked | None:
    """The letters of the only sign."""
    del rng
    if len(scene.signs) != 1:
        return None
    return BusyAsked("read sign ?", scene.signs[0].word, tuple(region_of(letter) for letter in scene.signs[0].letters))


def _ask_print(rng: np.random.Generator, scene: BusyScene, what: Literal["digit", "mark"]) -> BusyAsked | None:
    found = [(thing, fine) for thing in scene.large if (fine := getattr(thing, what)) is not None]
    chosen = _one(rng, found)
    if chosen is None:
        return None
    thing, fine = chosen
    return BusyAsked(f"{what} on {thing.kind} ?", fine.value, (region_of(fine), region_of(thing)))


def ask_digit(rng: np.random.Generator, scene: BusyScene) -> BusyAsked | None:
    """The digit on a large thing."""
    return _ask_print(rng, scene, "digit")


def ask_mark(rng: np.random.Generator, scene: BusyScene) -> BusyAsked | None:
    """The colour of the mark on a large thing."""
    return _ask_print(rng, scene, "mark")


def ask_count_small(rng: np.random.Generator, scene: BusyScene) -> BusyAsked | None:
    """How many small things of a kind there are."""
    kind = _one(rng, SMALL if rng.random() < 0.15 else tuple(thing.kind for thing in scene.small))
    counted = [thing for thing in scene.small if thing.kind == kind]
    return BusyAsked(f"count {kind} ?", str(len(counted)), tuple(region_of(thing) for thing in counted))


def ask_where(rng: np.random.Generator, scene: BusyScene) -> BusyAsked | None:
    """The place of the only small thing of a kind."""
    often = Counter(thing.kind for thing in scene.small)
    thing = _one(rng, [thing for thing in scene.small if often[thing.kind] == 1])
    return thing and BusyAsked(f"where {thing.kind} ?", _place(thing.box), (region_of(thing),))


def _place(box: Box) -> str:
    row, column = place_of(box)
    return f"{ROWS[row]} {COLUMNS[column]}"


def ask_describe(rng: np.random.Generator, scene: BusyScene) -> BusyAsked | None:
    """Every kind of large thing with its colour, the grounds, every kind of small thing with its number, in one order.

    What is not there is said too, and not scored: each word is then one look-up. When only what is there was listed,
    small things with their places, 65 % of it were right after 3500 steps: what comes next was then no single look-up.
    """
    del rng
    colors = {thing.kind: thing.color for thing in scene.large}
    often = Counter(thing.kind for thing in scene.small)
    parts = [f"{kind} {colors.get(kind, NO)}" for kind in LARGE]
    parts.append(" ".join(("ground", *scene.grounds)))
    parts += [f"small {kind} {often[kind] or NO}" for kind in SMALL]
    corners = (_of_corner(scene, quarter) for quarter in range(4))
    return BusyAsked("describe ?", " , ".join(parts), (*map(region_of, (*scene.large, *scene.small)), *corners))


def ask_signs(rng: np.random.Generator, scene: BusyScene) -> BusyAsked | None:
    """The letters of three signs, from top to bottom."""
    del rng
    if len(scene.signs) != 3:
        return None
    needs = tuple(region_of(letter) for sign in scene.signs for letter in sign.letters)
    return BusyAsked("read signs ?", " , ".join(sign.word for sign in scene.signs), needs)


def evidence_of(scene: BusyScene, asked: BusyAsked) -> tuple[Evidence, ...]:
    """What the answer needs, and with less weight all else that there is to see."""
    needed = {need.box for need in asked.needs}
    others = (need.box for need in all_needs(scene) if need.box not in needed)
    return (
        *(Evidence(*need.box) for need in asked.needs),
        *(Evidence(*box, weight=_OTHER_WEIGHT) for box in others),
    )


@dataclass(eq=False)
class BusyTask(DrawnTask):
    """One kind of question on endless busy pictures."""

    name: str
    grain: Grain
    ask: Question
    metric: Metric
    max_new_tokens: int
    description: str

    def draw(self, rng: np.random.Generator) -> Sequence[Sample]:
        """Samples of scene after scene."""
        samples: list[Sample] = []
        for _ in range(_CHUNK):
            scene = draw_scene(rng)
            asked = self.ask(rng, scene)
            if asked is not None:
                picture = Image.fromarray(render(rng, scene))
                samples.append(Sample("", (picture,), asked.question, asked.answer, evidence_of(scene, asked)))
        return samples

    def score(self, sample: Sample, prediction: str) -> float:
        """Exact match, or F1 of the listed parts; that something is not there counts for nothing."""
        if self.metric == "exact":
            return super().score(sample, prediction)
        return list_f1(_there(sample.answer), _there(prediction))


def _there(listed: str) -> str:
    return ",".join(part for part in listed.split(",") if NO not in part.split())


TASKS: Final[dict[str, BusyTask]] = {
    task.name: task
    for task in (
        BusyTask("busy-ground", "coarse", ask_ground, "exact", 3, "material in a corner"),
        BusyTask("busy-there", "coarse", ask_there, "exact", 3, "is there a large thing of a kind"),
        BusyTask("busy-color", "coarse", ask_color, "exact", 3, "colour of a large thing"),
        BusyTask("busy-left", "coarse", ask_left, "exact", 3, "is one large thing left of another"),
        BusyTask("busy-count-large", "coarse", ask_count_large, "exact", 3, "number of large things"),
        BusyTask("busy-sign", "fine", ask_sign, "exact", 7, "the letters of a sign"),
        BusyTask("busy-digit", "fine", ask_digit, "exact", 3, "the digit on a large thing"),
        BusyTask("busy-mark", "fine", ask_mark, "exact", 3, "the colour of the mark on a large thing"),
        BusyTask("busy-count-small", "fine", ask_count_small, "exact", 3, "number of small things of a kind"),
        BusyTask("busy-where", "fine", ask_where, "exact", 4, "the place of a small thing"),
        BusyTask("busy-describe", "long", ask_describe, "f1", 60, "large things, grounds, small things"),
        BusyTask("busy-signs", "long", ask_signs, "f1", 20, "the letters of three signs"),
    )
}
