"""Training forward pass: packed questions behind a picture whose tokens may be removed on the way up."""

from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import LlavaForConditionalGeneration

from tokentrim.testbed.dropout import DropoutPlan
from tokentrim.testbed.model import encode_images
from tokentrim.testbed.packing import PREFIX, Packed, layout
from tokentrim.testbed.scenes import TOKENS
from tokentrim.testbed.vocabulary import BEGIN, IDS, USER

_START = 2  # begin token and "user:" stand before the picture


@dataclass(frozen=True)
class Forward:
    """Logits of the segments [batch, total, words]; patch features and pooled [CLS] of the tower."""

    logits: Tensor
    features: Tensor
    pooled: Tensor


def run_packed(
    model: LlavaForConditionalGeneration, pixels: Tensor, packed: Packed, plan: DropoutPlan, priority: Tensor
) -> Forward:
    """Forward pass under a dropout plan; priority [batch, tokens], the highest go on."""
    features, pooled = encode_images(model, pixels)
    language = model.model.language_model
    visual = model.model.multi_modal_projector(features)
    batch = len(visual)
    start = language.embed_tokens(torch.tensor([[IDS[BEGIN], IDS[USER]]])).expand(batch, -1, -1)
    hidden = torch.cat([start, visual, language.embed_tokens(packed.ids)], 1)
    whole_mask, position = layout(packed.lengths)
    cos, sin = language.rotary_emb(hidden, position[None])
    cos, sin = cos.expand(batch, -1, -1), sin.expand(batch, -1, -1)
    mask, left = whole_mask, TOKENS
    for boundary, layer in enumerate(language.layers):
        count = plan.schedule.get(boundary, left)
        if count < left:
            kept = priority.topk(count, -1).indices.sort(-1).values
            priority = priority.gather(1, kept)
            index = _with_text(kept, left, hidden.shape[1])
            hidden, cos, sin = (_gather(x, index) for x in (hidden, cos, sin))
            left = count
            # The mask only asks which segment a text row belongs to, so any `count` visual columns will do.
            rows = torch.cat([torch.arange(_START + left), torch.arange(PREFIX, len(whole_mask))])
            mask = whole_mask[rows][:, rows]
        hidden = layer(hidden, attention_mask=mask[None, None], position_embeddings=(cos, sin))
    logits = model.lm_head(language.norm(hidden[:, _START + left :]))
    return Forward(logits, features, pooled)


def _with_text(kept: Tensor, left: int, total: int) -> Tensor:
    """Positions that stay, [batch, n]: text before the picture, kept visual tokens, text behind it."""
    batch = len(kept)
    before = torch.arange(_START).expand(batch, -1)
    behind = torch.arange(_START + left, total).expand(batch, -1)
    return torch.cat([before, kept + _START, behind], 1)


def _gather(values: Tensor, index: Tensor) -> Tensor:
    return values.gather(1, index[..., None].expand(-1, -1, values.shape[-1]))
