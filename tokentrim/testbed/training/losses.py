"""Losses of the testbed's training: what each patch shows, and the answers' words."""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from tokentrim.testbed.scenes import Scenes
from tokentrim.testbed.training.model import AuxiliaryHeads
from tokentrim.testbed.training.view import SQUARE_VIEW, View, fine_centre, holds_centre
from tokentrim.testbed.vocabulary import COLORS, GLYPHS

NOT_A_GLYPH = len(GLYPHS)
NOT_A_COLOR = len(COLORS)
UNJUDGED = -100  # class of a token that no loss looks at


@dataclass(frozen=True)
class PatchTargets:
    """Classes of every patch [batch, tokens], an object's at its centre patch; presence [batch, tiles, 22].

    A coarse plane is asked for colours only: its tokens are too large to tell glyphs apart. Structure is asked for
    nothing. The first tile of several shows the whole picture.
    """

    glyph: Tensor
    color: Tensor
    presence: Tensor

    @property
    def centre(self) -> Tensor:
        """Which patches are the centre of an object."""
        return (self.glyph != NOT_A_GLYPH) & (self.glyph != UNJUDGED)


def patch_targets(scenes: Scenes, view: View = SQUARE_VIEW) -> PatchTargets:
    """Targets of the auxiliary losses."""
    batch = len(scenes.cell)
    rows, slots = np.nonzero(scenes.present)
    token = fine_centre(scenes, view)[rows, slots]
    glyph = np.full((batch, view.tokens), NOT_A_GLYPH)
    color = np.full((batch, view.tokens), NOT_A_COLOR)
    presence = np.zeros((batch, int(view.tile.max()) + 1, NOT_A_GLYPH + NOT_A_COLOR), np.float32)
    glyph[:, ~view.fine] = UNJUDGED
    glyph[rows, token] = scenes.glyph[rows, slots]
    all_rows, all_slots, all_tokens = np.nonzero(holds_centre(scenes, view))
    color[all_rows, all_tokens] = scenes.color[all_rows, all_slots]
    color[:, view.structure] = UNJUDGED
    for tile in (view.tile[token], 0):
        presence[rows, tile, scenes.glyph[rows, slots]] = 1
        presence[rows, tile, NOT_A_GLYPH + scenes.color[rows, slots]] = 1
    return PatchTargets(torch.from_numpy(glyph), torch.from_numpy(color), torch.from_numpy(presence))


@dataclass(frozen=True)
class VisionLosses:
    """The parts of the auxiliary loss."""

    glyph: Tensor
    color: Tensor
    presence: Tensor
    position: Tensor


def vision_losses(
    heads: AuxiliaryHeads,
    features: Tensor,
    pooled: Tensor | None,
    targets: PatchTargets,
    background: float,
    place: View | None = SQUARE_VIEW,
) -> VisionLosses:
    """Auxiliary losses; `background` is the weight of "not the centre of an object" against a real class.

    A low weight lets training start; a high one makes exactly one patch per object stand out, on which
    counting rests. pooled: None for a tower without a pooled token. place: the view whose cells the features
    should tell; None for a tower that cannot know them.
    """
    glyph_weight, color_weight = torch.ones(NOT_A_GLYPH + 1), torch.ones(NOT_A_COLOR + 1)
    glyph_weight[-1] = color_weight[-1] = background
    nothing = torch.zeros(())
    position = nothing
    if place is not None:
        centre = targets.centre
        said = heads.position(features[centre])
        row = place.cell_row.expand_as(targets.glyph)[centre]
        column = place.cell_column.expand_as(targets.glyph)[centre]
        position = F.cross_entropy(said[:, :4], row) + F.cross_entropy(said[:, 4:], column)
    presence = nothing
    if pooled is not None:
        presence = F.binary_cross_entropy_with_logits(heads.presence(pooled), targets.presence)
    return VisionLosses(
        F.cross_entropy(heads.glyph(features).flatten(0, 1), targets.glyph.flatten(), glyph_weight),
        F.cross_entropy(heads.color(features).flatten(0, 1), targets.color.flatten(), color_weight),
        presence,
        position,
    )


def answer_loss(logits: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
    """Weighted mean cross-entropy of the labelled tokens; logits [batch, length, words]."""
    chosen = labels >= 0
    weight = weights[chosen]
    loss = F.cross_entropy(logits[chosen], labels[chosen], reduction="none")
    return (loss * weight).sum() / weight.sum()
