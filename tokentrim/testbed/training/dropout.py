"""Visual-token dropout of the testbed's training: tokens are really removed, as in pruning.

Without it a model has never seen a picture with holes, and a method that keeps exactly the right tokens would
still lose: the loss would measure the model's surprise, not the method's selection. One batch follows one
plan, so that all its rows keep the same number of tokens and a pruned batch is also a cheaper batch.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from tokentrim.testbed.scenes import TOKENS, Bools, Floats, Scenes
from tokentrim.testbed.training.view import SQUARE_VIEW, View, fine_centre, overlap

# keep-all: a token of every object stays, so every question can be asked. keep-some: a subset of the objects
# stays, and only they are asked about. anything: deep in the model, where the answer should have been read
# already. coarse: a tiled picture's coarse plane first, so that it is worth looking at.
Mode = Literal["none", "keep-all", "keep-some", "anything", "coarse"]


@dataclass(frozen=True)
class DropoutPlan:
    """How one batch is pruned: boundary -> number of visual tokens that go on, structure not counted."""

    mode: Mode = "none"
    schedule: Mapping[int, int] = field(default_factory=dict[int, int])


@dataclass(frozen=True)
class DropoutMix:
    """How often each kind of plan is drawn; `none` of all batches, the others' shares of the rest."""

    none: float = 0.34
    all_at_input: float = 0.50
    some_at_input: float = 0.12
    all_later: float = 0.12
    some_later: float = 0.06
    progressive: float = 0.12
    deep: float = 0.08
    coarse: float = 0.0
    deep_start: int = 7  # first boundary from which nothing of the picture need be left


def draw_plan(
    rng: np.random.Generator, mix: DropoutMix, layers: int, tokens: int = TOKENS, coarse: int = 0
) -> DropoutPlan:
    """A random plan for one batch. tokens: that may be dropped of a picture; coarse: those in its coarse plane."""
    if rng.random() < mix.none:
        return DropoutPlan()
    pruned = (mix.all_at_input, mix.some_at_input, mix.all_later, mix.some_later, mix.progressive, mix.deep, mix.coarse)
    shares = np.array(pruned)
    kind = int(rng.choice(len(shares), p=shares / shares.sum()))
    # Objects' centres need at most 10 tokens. Half of the plans draw budgets at which methods are compared.
    compared = rng.random() < 0.5
    enough = int(rng.integers(12, tokens // 2 + 1)) if compared else int(10 + (tokens - 10) * rng.random() ** 1.5)
    few = int(3 + 57 * tokens / TOKENS * rng.random() ** 1.3)
    later = int(rng.integers(1, mix.deep_start))
    match kind:
        case 0:
            return DropoutPlan("keep-all", {0: enough})
        case 1:
            return DropoutPlan("keep-some", {0: few})
        case 2:
            return DropoutPlan("keep-all", {later: enough})
        case 3:
            return DropoutPlan("keep-some", {later: few})
        case 4:
            return DropoutPlan("keep-all", _progressive(rng, mix, layers, tokens))
        case 6:
            return DropoutPlan("coarse", {0: int(rng.integers(coarse * 4 // 5, coarse * 2))})
        case _:
            boundary = int(rng.integers(mix.deep_start, layers))
            return DropoutPlan("anything", {boundary: int(rng.integers(0, 30 * tokens // TOKENS + 1))})


def _progressive(rng: np.random.Generator, mix: DropoutMix, layers: int, tokens: int) -> dict[int, int]:
    stride, dropped, left = int(rng.integers(2, 4)), rng.uniform(0.25, 0.55), float(tokens)
    schedule: dict[int, int] = {}
    for boundary in range(int(rng.integers(1, 4)), layers, stride):
        left = max(left * (1 - dropped), 10 if boundary < mix.deep_start else 1)
        schedule[boundary] = int(left)
    return schedule


def draw_priorities(
    rng: np.random.Generator, scenes: Scenes, plan: DropoutPlan, view: View = SQUARE_VIEW
) -> tuple[Floats, Bools | None]:
    """Priority of every visual token [batch, tokens] (higher stays longer), and the objects sure to stay.

    Structure outranks everything.
    """
    priority, visible = _draw_priorities(rng, scenes, plan, view)
    priority[:, view.structure] = 100
    return priority, visible


def _draw_priorities(
    rng: np.random.Generator, scenes: Scenes, plan: DropoutPlan, view: View
) -> tuple[Floats, Bools | None]:
    batch = len(scenes.cell)
    priority = rng.random((batch, view.tokens), np.float32)
    if plan.mode == "coarse":
        priority[:, ~view.fine] += 1
    if plan.mode in ("none", "anything", "coarse"):
        return priority, None
    touched = overlap(scenes, view)
    rows, slots = np.nonzero(scenes.present)
    centre = fine_centre(scenes, view)
    if plan.mode == "keep-all":
        # A third of the pictures: whole objects before any background, as an oracle ranks. Another third:
        # likewise, largest overlap first. The last third: a uniform sample of the rest.
        style = rng.integers(0, 3, (batch, 1))
        area = touched.max(1) / 64
        bonus = (area > 0) * (2 + np.where(style == 2, 4 * area, 0))
        priority += np.where(style == 0, 0, bonus).astype(np.float32)
        priority[rows, centre[rows, slots]] += 10
        return priority, None
    least = max(1, min(plan.schedule.values()))
    visible = scenes.present & (rng.random(scenes.cell.shape) < rng.uniform(0.25, 0.8, (batch, 1)))
    visible &= np.cumsum(visible, 1) <= least
    visible[~visible.any(1), 0] = True
    rows, slots = np.nonzero(visible)
    whole = (touched * visible[..., None]).max(1) > 0
    priority += (whole & (rng.random((batch, 1)) < 0.5)) * np.float32(2)
    priority[rows, centre[rows, slots]] += 10
    return priority, visible
