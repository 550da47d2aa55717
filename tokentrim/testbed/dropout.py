"""Visual-token dropout of the testbed's training: tokens are really removed, as in pruning.

Without it a model has never seen a picture with holes, and a method that keeps exactly the right tokens would
still lose: the loss would measure the model's surprise, not the method's selection. One batch follows one
plan, so that all its rows keep the same number of tokens and a pruned batch is also a cheaper batch.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from tokentrim.testbed.scenes import TOKENS, Bools, Floats, Scenes, centre_token, token_overlap

# keep-all: a token of every object stays, so every question can be asked. keep-some: a subset of the objects
# stays, and only they are asked about. anything: deep in the model, where the answer should have been read
# already.
Mode = Literal["none", "keep-all", "keep-some", "anything"]


@dataclass(frozen=True)
class DropoutPlan:
    """How one batch is pruned: boundary -> number of visual tokens that go on."""

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
    deep_start: int = 7  # first boundary from which nothing of the picture need be left


def draw_plan(rng: np.random.Generator, mix: DropoutMix, layers: int) -> DropoutPlan:
    """A random plan for one batch."""
    if rng.random() < mix.none:
        return DropoutPlan()
    shares = np.array([mix.all_at_input, mix.some_at_input, mix.all_later, mix.some_later, mix.progressive, mix.deep])
    kind = int(rng.choice(len(shares), p=shares / shares.sum()))
    # Objects' centres need at most 10 tokens. Half of the plans draw budgets at which methods are compared.
    compared = rng.random() < 0.5
    enough = int(rng.integers(12, 51)) if compared else int(10 + (TOKENS - 10) * rng.random() ** 1.5)
    few = int(3 + 57 * rng.random() ** 1.3)
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
            return DropoutPlan("keep-all", _progressive(rng, mix, layers))
        case _:
            boundary = int(rng.integers(mix.deep_start, layers))
            return DropoutPlan("anything", {boundary: int(rng.integers(0, 31))})


def _progressive(rng: np.random.Generator, mix: DropoutMix, layers: int) -> dict[int, int]:
    stride, dropped, left = int(rng.integers(2, 4)), rng.uniform(0.25, 0.55), float(TOKENS)
    schedule: dict[int, int] = {}
    for boundary in range(int(rng.integers(1, 4)), layers, stride):
        left = max(left * (1 - dropped), 10 if boundary < mix.deep_start else 1)
        schedule[boundary] = int(left)
    return schedule


def draw_priorities(rng: np.random.Generator, scenes: Scenes, plan: DropoutPlan) -> tuple[Floats, Bools | None]:
    """Priority of every visual token [batch, tokens] (higher stays longer), and the objects sure to stay."""
    batch = len(scenes.cell)
    priority = rng.random((batch, TOKENS), np.float32)
    if plan.mode in ("none", "anything"):
        return priority, None
    overlap = token_overlap(scenes)
    rows, slots = np.nonzero(scenes.present)
    centre = centre_token(scenes)
    if plan.mode == "keep-all":
        # A third of the pictures: whole objects before any background, as an oracle ranks. Another third:
        # likewise, largest overlap first. The last third: a uniform sample of the rest.
        style = rng.integers(0, 3, (batch, 1))
        area = overlap.max(1) / 64
        bonus = (area > 0) * (2 + np.where(style == 2, 4 * area, 0))
        priority += np.where(style == 0, 0, bonus).astype(np.float32)
        priority[rows, centre[rows, slots]] += 10
        return priority, None
    least = max(1, min(plan.schedule.values()))
    visible = scenes.present & (rng.random(scenes.cell.shape) < rng.uniform(0.25, 0.8, (batch, 1)))
    visible &= np.cumsum(visible, 1) <= least
    visible[~visible.any(1), 0] = True
    rows, slots = np.nonzero(visible)
    whole = (overlap * visible[..., None]).max(1) > 0
    priority += (whole & (rng.random((batch, 1)) < 0.5)) * np.float32(2)
    priority[rows, centre[rows, slots]] += 10
    return priority, visible
