"""Warm start of a new architecture from the trained LLaVA testbed: its decoder is copied, its eyes are imitated.

The new model gets the trained decoder layers on top of `PLACING` new ones, which begin as identities. The
distillation stage then trains the vision side and these new layers alone: what comes out of them at a visual token
shall be what the teacher's projector says about the same pixels of the same picture, place included. So the new
layers learn to read a token's place from its position in the sequence, and the copied ones are at home at once.
"""

from dataclasses import dataclass
from functools import cache
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import LlavaForConditionalGeneration

from tokentrim.testbed import model_folder
from tokentrim.testbed.scenes import CELL, GRID, IMAGE_SIZE, MAX_OBJECTS, PATCH
from tokentrim.testbed.training.family import LLAVA
from tokentrim.testbed.training.forward import embed
from tokentrim.testbed.training.losses import patch_targets, vision_losses
from tokentrim.testbed.training.packing import AnswerWeights, pack
from tokentrim.testbed.training.recipe import Stage
from tokentrim.testbed.training.steps import StepInput, StepLoss, Trainee, background_weight, draw_batch, draw_canvas
from tokentrim.testbed.training.view import SQUARE_VIEW, View

PLACING: Final = 2  # decoder layers below the copied ones
_LAYERS: Final = "model.language_model.layers."
_QUESTIONS: Final = ("color", "count-color", "at", "where")


@dataclass(frozen=True)
class Teacher:
    """The trained model that is imitated; mean and variance of its visual tokens over many pictures."""

    model: Any
    background: Tensor  # mean token without an object, [width]
    variance: Tensor  # mean over the width of a token's variance, scalar


@cache
def load_teacher(name: str) -> Teacher:
    """A shipped LLaVA testbed, frozen."""
    loader: Any = LlavaForConditionalGeneration
    model = loader.from_pretrained(model_folder(name), trust_remote_code=False).eval().requires_grad_(False)
    step = StepInput(*(np.random.default_rng([5, i]) for i in (0, 1)), batch=64, number=0, fraction=0, most=MAX_OBJECTS)
    batch = draw_batch(LLAVA, step, SQUARE_VIEW.canvas, 4, MAX_OBJECTS)
    visual = LLAVA.encode(model, batch.pixels, batch.view).visual
    empty = visual[~patch_targets(batch.scenes).centre]
    return Teacher(model, empty.mean(0), visual.flatten(0, 1).var(0).mean())


@torch.no_grad()
def warm_start(model: nn.Module, name: str) -> None:
    """Copy a shipped LLaVA testbed's weights into a model with `PLACING` more decoder layers."""
    old = load_teacher(name).model.state_dict()
    new = model.state_dict()
    for key, value in old.items():
        if key.startswith(_LAYERS):
            number, rest = key[len(_LAYERS) :].split(".", 1)
            new[f"{_LAYERS}{int(number) + PLACING}.{rest}"].copy_(value)
        elif "position_embedding" in key and key in new:
            _copy_positions(value, new[key])
        elif "embed_tokens" in key or "lm_head" in key:
            new[key][: len(value)].copy_(value)  # words of the new family stand behind the old ones
        elif key in new:
            new[key].copy_(value)
    for number in range(PLACING):
        for part in ("self_attn.o_proj", "mlp.down_proj"):
            new[f"{_LAYERS}{number}.{part}.weight"].zero_()
    if "model.image_newline" in new:
        new["model.image_newline"].mul_(0.5)
    model.load_state_dict(new)


def _copy_positions(old: Tensor, new: Tensor) -> None:
    """[CLS], then the top left corner of the larger grid."""
    side = round((len(new) - 1) ** 0.5)
    new[:1].copy_(old[:1])
    new[1:].copy_(old[1:].view(GRID, GRID, -1)[:side, :side].flatten(0, 1))


def placing_parameters(model: Any) -> list[nn.Parameter]:
    """What the distillation trains beside the tower: projector, new decoder layers, the end of a line."""
    inner = model.model
    parts = [*inner.language_model.layers[:PLACING]]
    if hasattr(inner, "multi_modal_projector"):
        parts.append(inner.multi_modal_projector)
    if hasattr(inner, "visual"):
        parts.append(inner.visual.merger.mlp)
    found = [p for part in parts for p in part.parameters()]
    return [*found, inner.image_newline] if hasattr(inner, "image_newline") else found


def teacher_tokens(teacher: Teacher, pictures: NDArray[np.uint8], view: View) -> tuple[Tensor, Tensor]:
    """The teacher's tokens for the fine tokens of a view [batch, fine, width], and which of them it has [fine].

    The picture is cut or continued to the teacher's size, so that every pixel keeps its place.
    """
    height, width = view.canvas.height, view.canvas.width
    beyond = ((0, 0), (0, max(0, IMAGE_SIZE - height)), (0, max(0, IMAGE_SIZE - width)), (0, 0))
    square = np.pad(pictures, beyond, mode="edge")[:, :IMAGE_SIZE, :IMAGE_SIZE]
    pixels = LLAVA.pixels(np.ascontiguousarray(square), SQUARE_VIEW)
    with torch.no_grad():
        visual = LLAVA.encode(teacher.model, pixels, SQUARE_VIEW).visual
    row, column = (view.boxes[view.fine, :2] // PATCH).astype(np.int64).T
    known = (row < GRID) & (column < GRID)
    place = np.where(known, row * GRID + column, 0)
    return visual[:, torch.from_numpy(place)], torch.from_numpy(known)


def distillation_step(trainee: Trainee, stage: Stage, step: StepInput) -> StepLoss:
    """Imitate the teacher's visual tokens behind the placing layers; leave words as they are."""
    teacher, family = load_teacher(stage.warm), trainee.family
    # Cells of another size have no counterpart in the teacher's picture.
    canvases = tuple(c for c in family.canvases if c.cell_height == c.cell_width == CELL)
    batch = draw_batch(family, step, draw_canvas(step.shared, canvases), stage.fewest, MAX_OBJECTS)
    view = batch.view
    encoded = family.encode(trainee.model, batch.pixels, view)
    packed = pack(step.own, batch.scenes, _QUESTIONS, None, None, AnswerWeights())
    language = trainee.model.model.language_model
    embedded = embed(language, encoded.visual, packed, view)
    hidden = embedded.hidden
    for layer in language.layers[:PLACING]:
        hidden = layer(
            hidden, attention_mask=embedded.mask[None, None], position_embeddings=(embedded.cos, embedded.sin)
        )
    visual = hidden[:, len(view.start) : len(view.start) + view.tokens]
    said, known = teacher_tokens(teacher, batch.pictures, view)
    targets = patch_targets(batch.scenes, view)
    fine, centre = torch.from_numpy(view.fine), targets.centre[:, torch.from_numpy(view.fine)]
    difference = (visual[:, fine] - said).pow(2).mean(-1) / teacher.variance
    objects, everything = difference[centre & known].mean(), difference[:, known].mean()
    rest = (visual[:, ~fine] - teacher.background).pow(2).mean() / teacher.variance if (~fine).any() else objects * 0
    words = embedded.hidden[:, view.length :].detach()
    moved = (hidden[:, view.length :] - words).pow(2).mean() / words.var()
    background = background_weight(stage, step.fraction)
    place = view if family.sees_place else None
    seen = vision_losses(trainee.heads, encoded.features, encoded.pooled, targets, background, place)
    total = objects + everything + 0.1 * rest + 0.3 * moved + 0.5 * (seen.glyph + seen.color + seen.presence)
    return StepLoss(total, "objects", objects, seen.glyph)
