"""Losses of the testbed's training: what each patch shows, and the answers' words."""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from tokentrim.testbed.model import AuxiliaryHeads
from tokentrim.testbed.scenes import CELL, GRID, PATCH, TOKENS, Scenes, centre_token
from tokentrim.testbed.vocabulary import COLORS, GLYPHS

NOT_A_GLYPH = len(GLYPHS)
NOT_A_COLOR = len(COLORS)
_place = torch.arange(TOKENS)
TOKEN_ROW = (_place // GRID * PATCH + PATCH // 2) // CELL  # cell row of each patch's centre
TOKEN_COLUMN = (_place % GRID * PATCH + PATCH // 2) // CELL


@dataclass(frozen=True)
class PatchTargets:
    """Classes of every patch [batch, tokens], an object's at its centre patch; presence [batch, 22]."""

    glyph: Tensor
    color: Tensor
    presence: Tensor

    @property
    def centre(self) -> Tensor:
        """Which patches are the centre of an object."""
        return self.glyph != NOT_A_GLYPH


def patch_targets(scenes: Scenes) -> PatchTargets:
    """Targets of the auxiliary losses."""
    batch = len(scenes.cell)
    rows, slots = np.nonzero(scenes.present)
    token = centre_token(scenes)[rows, slots]
    glyph = np.full((batch, TOKENS), NOT_A_GLYPH)
    color = np.full((batch, TOKENS), NOT_A_COLOR)
    presence = np.zeros((batch, NOT_A_GLYPH + NOT_A_COLOR), np.float32)
    glyph[rows, token] = scenes.glyph[rows, slots]
    color[rows, token] = scenes.color[rows, slots]
    presence[rows, scenes.glyph[rows, slots]] = 1
    presence[rows, NOT_A_GLYPH + scenes.color[rows, slots]] = 1
    return PatchTargets(torch.from_numpy(glyph), torch.from_numpy(color), torch.from_numpy(presence))


@dataclass(frozen=True)
class VisionLosses:
    """The parts of the auxiliary loss."""

    glyph: Tensor
    color: Tensor
    presence: Tensor
    position: Tensor


def vision_losses(
    heads: AuxiliaryHeads, features: Tensor, pooled: Tensor, targets: PatchTargets, background: float
) -> VisionLosses:
    """Auxiliary losses; `background` is the weight of "not the centre of an object" against a real class.

    A low weight lets training start; a high one makes exactly one patch per object stand out, on which
    counting rests.
    """
    glyph_weight, color_weight = torch.ones(NOT_A_GLYPH + 1), torch.ones(NOT_A_COLOR + 1)
    glyph_weight[-1] = color_weight[-1] = background
    centre = targets.centre
    position = heads.position(features[centre])
    row = TOKEN_ROW.expand_as(targets.glyph)[centre]
    column = TOKEN_COLUMN.expand_as(targets.glyph)[centre]
    return VisionLosses(
        F.cross_entropy(heads.glyph(features).flatten(0, 1), targets.glyph.flatten(), glyph_weight),
        F.cross_entropy(heads.color(features).flatten(0, 1), targets.color.flatten(), color_weight),
        F.binary_cross_entropy_with_logits(heads.presence(pooled), targets.presence),
        F.cross_entropy(position[:, :4], row) + F.cross_entropy(position[:, 4:], column),
    )


def answer_loss(logits: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
    """Weighted mean cross-entropy of the labelled tokens; logits [batch, length, words]."""
    chosen = labels >= 0
    weight = weights[chosen]
    loss = F.cross_entropy(logits[chosen], labels[chosen], reduction="none")
    return (loss * weight).sum() / weight.sum()
