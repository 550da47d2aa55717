"""A training batch: pictures, what their patches show, which tokens are dropped, and packed questions."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tokentrim.testbed.busy.render import render
from tokentrim.testbed.busy.scenes import (
    CELL,
    GRID,
    PATCH,
    BusyScene,
    Fine,
    Small,
    centre_patch,
    draw_scene,
    patches_of,
    place_of,
)
from tokentrim.testbed.busy.tasks import TASKS, BusyAsked, NeededRegion, Question, all_needs, ask_where, region_of
from tokentrim.testbed.busy.vocabulary import GROUNDS, IDS, LARGE, encode
from tokentrim.testbed.training.busy.model import AREAS, CAPTION_WORDS, NO_PRINT, PRINT, TOKENS
from tokentrim.testbed.training.dropout import DropoutPlan
from tokentrim.testbed.training.packing import IGNORE, Packed
from tokentrim.testbed.vocabulary import ASSISTANT, COLORS, COLUMNS, END, PAD, ROWS

WEIGHTS: Final[Mapping[str, float]] = {
    "busy-ground": 1.5, "busy-describe": 2.0, "busy-sign": 1.5, "busy-signs": 1.5
}  # fmt: skip
_SHORT_WEIGHT: Final = 4.0  # look-ups are learnt last
_END_WEIGHT: Final = 0.3
# The word before the question mark and the mark itself learn the answer's first word too: there the look-up is one
# step, from a word to the tokens that resemble it, and what follows can copy what they found.
_EARLY: Final = 2
_EARLY_WEIGHT: Final = 0.5
_FEWEST: Final = 12  # at a stage's beginning, when a look-up of a single token must stand out
_NEEDED: Final = 28  # visual tokens at 11 %, the smallest budget at which methods are compared


@dataclass(frozen=True)
class Targets:
    """Classes of every patch, [batch, tokens], IGNORE where not judged; captions as counts of words.

    row, column: of the place, of 4 x 4, where that lies which a patch is of: all of a large thing's patches tell its
    centre's.
    """

    print: Tensor
    color: Tensor
    area: Tensor
    area_color: Tensor
    row: Tensor
    column: Tensor
    captions: Tensor


def draw_scenes(rng: np.random.Generator, batch: int) -> list[BusyScene]:
    """Draw random scenes."""
    return [draw_scene(rng) for _ in range(batch)]


def paint(rng: np.random.Generator, scenes: list[BusyScene]) -> NDArray[np.uint8]:
    """Their pictures, [batch, 128, 128, 3]."""
    return np.stack([render(rng, scene) for scene in scenes])


def targets_of(scenes: list[BusyScene]) -> Targets:
    """What every patch shows. A caption names the large things, each with its colour, and the grounds."""
    shape = (len(scenes), TOKENS)
    printed = np.full(shape, NO_PRINT)
    color, area, area_color = (np.full(shape, IGNORE) for _ in range(3))
    row, column = (np.repeat(own[None] * PATCH // CELL, len(scenes), 0) for own in np.divmod(np.arange(TOKENS), GRID))
    captions = np.zeros((len(scenes), CAPTION_WORDS), np.float32)
    for i, scene in enumerate(scenes):
        small: list[tuple[Fine | Small, str, str | None]] = [(t, t.kind, t.color) for t in scene.small]
        for thing in scene.large:
            if thing.digit is not None:
                small.append((thing.digit, thing.digit.value, None))
            if thing.mark is not None:
                small.append((thing.mark, "mark", thing.mark.value))
            printed_on = [centre_patch(fine.box) for fine in (thing.digit, thing.mark) if fine is not None]
            whole = [*thing.shown, *printed_on]
            area[i, whole] = AREAS.index(thing.kind)
            area_color[i, list(thing.shown)] = COLORS.index(thing.color)
            row[i, whole], column[i, whole] = place_of(thing.box)
            captions[i, LARGE.index(thing.kind) * len(COLORS) + COLORS.index(thing.color)] += 1
        small += [(letter, letter.value, None) for sign in scene.signs for letter in sign.letters]
        for thing, name, shade in small:
            patch = centre_patch(thing.box)
            printed[i, patch] = PRINT.index(name)
            if isinstance(thing, Small):
                row[i, patch], column[i, patch] = place_of(thing.box)
            if shade is not None:  # one colour to a patch: a mark hides its thing's
                color[i, patch] = COLORS.index(shade)
                area_color[i, patch] = IGNORE
        free = (patches_of(scene.owner) == -1).all(-1)
        for quarter, patches in enumerate(scene.corners):
            ground = GROUNDS.index(scene.grounds[quarter])
            area[i, list(patches)] = len(LARGE) + ground
            captions[i, len(LARGE) * len(COLORS) + ground] = 1
        area[i] = np.where(~free & (area[i] >= len(LARGE)), IGNORE, area[i])
    return Targets(*(torch.from_numpy(x) for x in (printed, color, area, area_color, row, column, captions)))


def draw_plan(rng: np.random.Generator, none: float, layers: int, most: int = TOKENS) -> DropoutPlan:
    """How a batch is pruned: mostly at the input, at times later, step by step, or almost wholly and late.

    most: tokens that any plan keeps, of which fewer than all are a stage's beginning.
    """
    if most < TOKENS:
        return DropoutPlan("keep-some", {0: int(rng.integers(_FEWEST, most + 1))})
    if rng.random() < none:
        return DropoutPlan()
    count = int(rng.integers(_NEEDED, TOKENS // 2 + 1) if rng.random() < 0.6 else rng.integers(_NEEDED, TOKENS))
    middle = layers // 2 + 1
    match int(rng.choice(4, p=(0.7, 0.12, 0.1, 0.08))):
        case 0:
            return DropoutPlan("keep-some", {0: count})
        case 1:
            return DropoutPlan("keep-some", {int(rng.integers(1, middle)): count})
        case 2:
            schedule: dict[int, int] = {}
            left, dropped, stride = float(TOKENS), rng.uniform(0.25, 0.5), int(rng.integers(2, 4))
            for boundary in range(int(rng.integers(1, 4)), middle, stride):
                left = max(left * (1 - dropped), _NEEDED)
                schedule[boundary] = int(left)
            return DropoutPlan("keep-some", schedule)
        case _:
            return DropoutPlan("anything", {int(rng.integers(middle, layers)): int(rng.integers(0, TOKENS // 4))})


def draw_priorities(rng: np.random.Generator, scenes: list[BusyScene], everything: bool = False) -> NDArray[np.float32]:
    """Priority of every token, [batch, tokens]: some of what there is to see before background, or chance alone.

    everything: a token of all there is to see, always.
    """
    priority = rng.random((len(scenes), TOKENS), np.float32)
    for i, scene in enumerate(scenes):
        if not everything and rng.random() < 0.2:
            continue
        share = 1.0 if everything or rng.random() < 0.55 else rng.uniform(0.2, 0.9)
        if not everything and rng.random() < 0.25:
            # Of large things alone, as one who counts them keeps: how many tokens there are says nothing then.
            for thing in scene.large:
                priority[i, list(thing.shown)] += rng.choice((2, 20))
        whole = not everything and rng.random() < 0.5
        for need in all_needs(scene):
            if need.patches and rng.random() < share:
                priority[i, need.patches[int(rng.integers(len(need.patches)))]] += 10
                if whole:
                    priority[i, list(need.patches)] += 2
    return priority


def _met(needs: tuple[NeededRegion, ...], kept: NDArray[np.bool_]) -> bool:
    return all(kept[list(need.patches)].any() for need in needs)


def _ask(rng: np.random.Generator, name: str, scene: BusyScene) -> tuple[str, BusyAsked | None]:
    if name == "reading":
        name = "busy-signs" if len(scene.signs) == 3 else "busy-sign"
    return name, HELPS[name](rng, scene) if name in HELPS else TASKS[name].ask(rng, scene)


def _help_color(rng: np.random.Generator, scene: BusyScene) -> BusyAsked | None:
    """Colour of the only small thing of a kind."""
    where = ask_where(rng, scene)
    if where is None:
        return None
    kind = where.question.split()[1]
    (thing,) = (thing for thing in scene.small if thing.kind == kind)
    return BusyAsked(f"color of {kind} ?", thing.color, where.needs)


def _help_where(rng: np.random.Generator, scene: BusyScene) -> BusyAsked | None:
    """Place of a large thing."""
    thing = scene.large[int(rng.integers(len(scene.large)))]
    row, column = place_of(thing.box)
    return BusyAsked(f"where {thing.kind} ?", f"{ROWS[row]} {COLUMNS[column]}", (region_of(thing),))


def _help_digit(rng: np.random.Generator, scene: BusyScene) -> BusyAsked | None:
    """The only digit on anything."""
    del rng
    digits = [thing.digit for thing in scene.large if thing.digit is not None]
    return BusyAsked("read digit ?", digits[0].value, (region_of(digits[0]),)) if len(digits) == 1 else None


# Questions of the training alone. A small thing is one token among many, and of `busy-where` nothing was learnt in 700
# steps of words: the word attended to no token of its kind. What tells a large thing's colour soon finds a small one's,
# and what tells a large thing's place then finds its: 52 % after 300 steps more. A digit is read, then looked up.
HELPS: Final[Mapping[str, Question]] = {
    "help-color": _help_color, "help-where": _help_where, "help-digit": _help_digit,
}  # fmt: skip


@dataclass(frozen=True)
class Questions:
    """Packed questions; names[segment][picture]: which task each is of.

    answers: the labels without those that the question's own last words bear, [batch, total].
    """

    packed: Packed
    names: list[list[str]]
    answers: Tensor


def pack_questions(
    rng: np.random.Generator, scenes: list[BusyScene], asked_for: tuple[str, ...], kept: NDArray[np.bool_]
) -> Questions:
    """Questions behind every picture; those that the kept tokens [batch, tokens] cannot answer bear no label."""
    ids, labels, early, weights, lengths, names = [], [], [], [], [], []
    for segment in asked_for:
        rows: list[tuple[list[int], list[int], int, float]] = []
        named: list[str] = []
        for i, scene in enumerate(scenes):
            name, asked = _ask(rng, segment, scene)
            named.append(name)
            if asked is None:
                rows.append(([], [], 0, 0.0))
                continue
            prompt = encode(f"{asked.question} {ASSISTANT}")
            answer = [*encode(asked.answer), IDS[END]]
            first = len(prompt) - 1
            label = [IGNORE] * (first - _EARLY) + [answer[0]] * _EARLY + answer
            if not _met(asked.needs, kept[i]):
                label = [IGNORE] * len(label)
            rows.append(([*prompt, *answer[:-1]], label, first, WEIGHTS.get(name, _SHORT_WEIGHT)))
        length = max(1, *(len(row[0]) for row in rows))
        ids.append([row + [IDS[PAD]] * (length - len(row)) for row, *_ in rows])
        labels.append([label + [IGNORE] * (length - len(label)) for _, label, *_ in rows])
        early.append([[place < first for place in range(length)] for _, _, first, _ in rows])
        weights.append([[weight] * length for *_, weight in rows])
        lengths.append(length)
        names.append(named)
    all_ids, all_labels = (torch.from_numpy(np.concatenate(x, 1).astype(np.int64)) for x in (ids, labels))
    is_early = torch.from_numpy(np.concatenate(early, 1))
    weight = torch.from_numpy(np.concatenate(weights, 1).astype(np.float32))
    weight[all_labels == IDS[END]] *= _END_WEIGHT
    weight[is_early] *= _EARLY_WEIGHT
    answers = all_labels.masked_fill(is_early, IGNORE)
    return Questions(Packed(all_ids, all_labels, weight, tuple(lengths)), names, answers)
