"""Training forward pass: packed questions behind a picture whose tokens may be removed on the way up."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tokentrim.testbed.training.dropout import DropoutPlan
from tokentrim.testbed.training.family import LLAVA, Encoded, TestbedFamily
from tokentrim.testbed.training.packing import Packed, layout
from tokentrim.testbed.training.view import SQUARE_VIEW, View


@dataclass(frozen=True)
class Forward:
    """Logits of the segments [batch, total, words]; the tower's features and pooled tokens."""

    logits: Tensor
    features: Tensor
    pooled: Tensor | None


@dataclass(frozen=True)
class Embedded:
    """Input of the decoder's first layer: hidden [batch, all, width], rotary cosines and sines, additive mask."""

    hidden: Tensor
    cos: Tensor
    sin: Tensor
    mask: Tensor


def embed(language: Any, visual: Tensor, packed: Packed, view: View) -> Embedded:
    """Start, visual tokens, end and segments in their order and positions."""
    batch = len(visual)
    start, end = (language.embed_tokens(torch.tensor([ids], dtype=torch.int64)) for ids in (view.start, view.end))
    around = (start.expand(batch, -1, -1), visual, end.expand(batch, -1, -1))
    hidden = torch.cat([*around, language.embed_tokens(packed.ids)], 1)
    mask, position = layout(packed.lengths, view)
    # One axis is a plain position [1, all]; several are M-RoPE's [axes, 1, all].
    cos, sin = language.rotary_emb(hidden, position if len(position) == 1 else position[:, None])
    return Embedded(hidden, cos.expand(batch, -1, -1), sin.expand(batch, -1, -1), mask)


def run_packed(
    model: Any,
    pixels: Tensor,
    packed: Packed,
    plan: DropoutPlan,
    priority: Tensor,
    family: TestbedFamily = LLAVA,
    view: View = SQUARE_VIEW,
) -> Forward:
    """Forward pass under a dropout plan; priority [batch, tokens], the highest go on."""
    return run_encoded(model, family.encode(model, pixels, view), packed, plan, priority, view)


def run_encoded(
    model: Any, encoded: Encoded, packed: Packed, plan: DropoutPlan, priority: Tensor, view: View
) -> Forward:
    """The same of visual tokens that are there already."""
    language = model.model.language_model
    embedded = embed(language, encoded.visual, packed, view)
    hidden, cos, sin, whole_mask = embedded.hidden, embedded.cos, embedded.sin, embedded.mask
    first, kept_always = len(view.start), view.tokens - view.pictorial
    mask, left = whole_mask, view.tokens
    for boundary, layer in enumerate(language.layers):
        count = min(left, plan.schedule.get(boundary, left) + kept_always)
        if count < left:
            kept = priority.topk(count, -1).indices.sort(-1).values
            priority = priority.gather(1, kept)
            index = _with_text(kept, first, left, hidden.shape[1])
            hidden, cos, sin = (_gather(x, index) for x in (hidden, cos, sin))
            left = count
            # The mask only asks which segment a text row belongs to, so any `count` visual columns will do.
            rows = torch.cat([torch.arange(first + left), torch.arange(first + view.tokens, len(whole_mask))])
            mask = whole_mask[rows][:, rows]
        hidden = layer(hidden, attention_mask=mask[None, None], position_embeddings=(cos, sin))
    logits = model.lm_head(language.norm(hidden[:, first + left + len(view.end) :]))
    return Forward(logits, encoded.features, encoded.pooled)


def _with_text(kept: Tensor, first: int, left: int, total: int) -> Tensor:
    """Positions that stay, [batch, n]: text before the picture, kept visual tokens, text behind it."""
    batch = len(kept)
    before = torch.arange(first).expand(batch, -1)
    behind = torch.arange(first + left, total).expand(batch, -1)
    return torch.cat([before, kept + first, behind], 1)


def _gather(values: Tensor, index: Tensor) -> Tensor:
    return values.gather(1, index[..., None].expand(-1, -1, values.shape[-1]))
