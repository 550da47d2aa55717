"""One training step of each kind of stage: draw pictures, compute the loss."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from tokentrim.testbed.scenes import MAX_OBJECTS, SQUARE, Canvas, Scenes, draw_scenes, render
from tokentrim.testbed.training.dropout import DropoutPlan, draw_plan, draw_priorities
from tokentrim.testbed.training.family import LLAVA, TestbedFamily
from tokentrim.testbed.training.forward import run_packed
from tokentrim.testbed.training.losses import answer_loss, patch_targets, vision_losses
from tokentrim.testbed.training.model import AuxiliaryHeads
from tokentrim.testbed.training.packing import pack
from tokentrim.testbed.training.questions import COLOR_IDS, COLUMN_IDS, GLYPH_IDS, ROW_IDS
from tokentrim.testbed.training.recipe import Stage
from tokentrim.testbed.training.view import View


@dataclass(frozen=True)
class StepInput:
    """What a step may depend on: nothing else, so that a resumed run repeats it exactly."""

    shared: np.random.Generator  # the same in all processes: the shape of the batch
    own: np.random.Generator  # of this process: its pictures and questions
    batch: int  # pictures of this process
    number: int  # of the step
    fraction: float  # of the stage that is done
    most: int  # objects


@dataclass(frozen=True)
class StepLoss:
    """The loss to minimise; for the log, the unweighted loss of all answers and of short ones, and its name."""

    total: Tensor
    meter: str
    shown: Tensor
    short: Tensor


class Trainee(nn.Module):
    """What is trained: the model, and read-outs that only training needs."""

    def __init__(self, model: Any, family: TestbedFamily = LLAVA) -> None:
        super().__init__()
        self.model = model
        self.family = family
        self.heads = AuxiliaryHeads(family.feature_width)
        self.scale = nn.Parameter(torch.tensor(2.0))  # log of the alignment's similarity scale


def background_weight(stage: Stage, fraction: float) -> float:
    """Weight of "not the centre of an object" at a point of the stage."""
    first, last = stage.background
    return first + (last - first) * fraction


@dataclass(frozen=True)
class TrainingBatch:
    """Rendered pictures of one canvas, and the model's input made of them."""

    scenes: Scenes
    pictures: NDArray[np.uint8]
    pixels: Tensor
    view: View


def draw_batch(family: TestbedFamily, step: StepInput, canvas: Canvas, fewest: int, most: int) -> TrainingBatch:
    """Random scenes on one canvas."""
    most = min(most, canvas.most)
    scenes = draw_scenes(step.own, step.batch, min(fewest, most), most, canvas)
    pictures, view = render(step.own, scenes), family.view(canvas)
    return TrainingBatch(scenes, pictures, family.pixels(pictures, view), view)


def draw_canvas(rng: np.random.Generator, canvases: tuple[Canvas, ...]) -> Canvas:
    """A canvas for a batch: the first one for half of the batches, any of the others for the rest."""
    if len(canvases) == 1 or rng.random() < 0.5:
        return canvases[0]
    return canvases[int(rng.integers(1, len(canvases)))]


def vision_step(trainee: Trainee, stage: Stage, step: StepInput) -> StepLoss:
    """The tower alone learns what every patch shows and where it is."""
    batch = draw_batch(trainee.family, step, SQUARE, stage.fewest, MAX_OBJECTS)
    seen = trainee.family.encode(trainee.model, batch.pixels, batch.view)
    background = background_weight(stage, step.fraction)
    losses = vision_losses(trainee.heads, seen.features, seen.pooled, patch_targets(batch.scenes), background)
    total = losses.glyph + losses.color + losses.presence + 0.5 * losses.position
    return StepLoss(total, "vision", losses.glyph, losses.glyph)


def alignment_step(trainee: Trainee, stage: Stage, step: StepInput) -> StepLoss:
    """Projected features of objects' centres learn to resemble the words that describe them."""
    batch = draw_batch(trainee.family, step, SQUARE, stage.fewest, MAX_OBJECTS)
    with torch.no_grad():
        features = trainee.family.encode(trainee.model, batch.pixels, batch.view).features
    targets = patch_targets(batch.scenes)
    centre = targets.centre
    words = trainee.model.model.language_model.embed_tokens.weight
    projected = trainee.model.model.multi_modal_projector(features)
    scale = trainee.scale.exp()

    def similarity(tokens: Tensor, ids: np.ndarray) -> Tensor:
        return scale * tokens @ words[torch.from_numpy(ids)].T

    objects = projected[centre]
    loss = (
        F.cross_entropy(similarity(objects, GLYPH_IDS), targets.glyph[centre])
        + F.cross_entropy(similarity(objects, COLOR_IDS), targets.color[centre])
        + F.cross_entropy(similarity(objects, ROW_IDS), batch.view.cell_row.expand_as(centre)[centre])
        + F.cross_entropy(similarity(objects, COLUMN_IDS), batch.view.cell_column.expand_as(centre)[centre])
    )
    named = np.concatenate([GLYPH_IDS, COLOR_IDS])
    # On background no word may stand out, and projected tokens stay in the range of word embeddings.
    silence = (similarity(projected[~centre], named).logsumexp(-1) - math.log(len(named))).relu().mean()
    size = (objects.pow(2).mean() / (2 * 0.04) ** 2 - 1).relu()
    return StepLoss(loss + 0.3 * silence + 0.02 * size, "alignment", loss, loss)


def language_step(trainee: Trainee, stage: Stage, step: StepInput) -> StepLoss:
    """Everything learns to answer packed questions, under visual-token dropout where the stage has it."""
    family = trainee.family
    most = int(step.shared.choice([7, 9, step.most, step.most])) if stage.dropout else step.most
    canvas = draw_canvas(step.shared, family.canvases)
    seen_as = family.view(canvas)
    counts = (seen_as.pictorial, seen_as.coarse)
    plan = draw_plan(step.shared, stage.dropout, stage.layers, *counts) if stage.dropout else DropoutPlan()
    caption = "list-where" if step.shared.random() < 0.6 else "list-all"
    if stage.captions < 1 and step.shared.random() >= stage.captions:
        caption = None
    batch = draw_batch(family, step, canvas, max(2, most - 6), most)
    scenes, view = batch.scenes, batch.view
    priority, visible = draw_priorities(step.own, scenes, plan, view)
    weights = stage.weights_at(step.number)
    if plan.mode == "keep-some":
        packed = pack(step.own, scenes, stage.questions_some, None, visible, weights)
    else:
        packed = pack(step.own, scenes, stage.questions, caption, None, weights)
    out = run_packed(trainee.model, batch.pixels, packed, plan, torch.from_numpy(priority), family, view)
    answers = answer_loss(out.logits, packed.labels, packed.weights)
    background = background_weight(stage, step.fraction)
    place = view if family.sees_place else None
    seen = vision_losses(trainee.heads, out.features, out.pooled, patch_targets(scenes, view), background, place)
    total = answers + 0.3 * (seen.glyph + seen.color + seen.presence) + 0.1 * seen.position
    with torch.no_grad():
        ones = torch.ones_like(packed.weights)
        plain = answer_loss(out.logits, packed.labels, ones)
        asked = stage.questions_some if plan.mode == "keep-some" else stage.questions
        end = sum(packed.lengths[: len(asked)])
        short = answer_loss(out.logits[:, :end], packed.labels[:, :end], ones[:, :end])
    meter = plan.mode + ("@0" if 0 in plan.schedule else "")
    return StepLoss(total, meter, plain, short)


STEPS = {"vision": vision_step, "alignment": alignment_step, "language": language_step}
