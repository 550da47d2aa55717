"""The slow reference: the untouched decoder, one layer after another, with a mask of its own for every layer.

Nothing is ever removed here. A pruned token stays in the sequence; what others may see of it is masked away, layer by
layer, and for generated tokens step by step. One sample at a time, no padding, no cache, no fused kernel.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from tests.models import IMAGE
from tokentrim.engine.tokens.trace import Trace

Change = Callable[[Tensor], Tensor]


def embeddings(model: Any, inputs: dict[str, Tensor]) -> Tensor:
    """[T, D]: what the untouched model hands to its decoder for a prompt of one row."""
    seen: list[Tensor] = []
    language_model = model.model.language_model

    def look(module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        seen.append(kwargs["inputs_embeds"])

    handle = language_model.register_forward_pre_hook(look, with_kwargs=True)
    try:
        with torch.no_grad():
            model(**inputs)
    finally:
        handle.remove()
    return seen[0][0]


def reference_logits(
    model: Any,
    inputs: dict[str, Tensor],
    generated: Tensor,
    trace: Trace,
    *,
    sample: int = 0,
    renumber: bool = False,
    change: dict[int, Change] | None = None,
    steps: list[int] | None = None,
    embedded: Tensor | None = None,
    hidden_from: dict[int, Tensor] | None = None,
) -> Tensor:
    """[T + G, V]: logits at every column of the prompt and of ``generated`` under the kept sets of ``trace``.

    Args:
        model: the untouched model.
        inputs: a prompt of one row.
        generated: [G] tokens that followed the prompt.
        trace: which visual tokens each layer kept, and which its cache held at every step.
        sample: the trace's row.
        renumber: positions are contiguous in every layer, instead of the original ones.
        change: boundary -> what happens to the prompt's hidden states [T, D] there (merging).
        steps: [G] decode forward in which each generated token was fed; by default one token each.
        embedded: [T, D], what the decoder is handed, where a gradient is to flow through it.
        hidden_from: generated token -> the columns that it, as the caller wants, does not see.
    """
    ids = inputs["input_ids"][0]
    length, extra = len(ids), len(generated)
    total = length + extra
    is_visual = torch.cat([ids == IMAGE, torch.zeros(extra, dtype=torch.bool)])
    raster = torch.cumsum(is_visual, 0) - 1  # number of each visual token
    steps = list(range(1, extra + 1)) if steps is None else steps
    core, decoder = model.model, model.model.language_model
    hidden = embeddings(model, inputs) if embedded is None else embedded
    if extra:
        hidden = torch.cat([hidden, core.get_input_embeddings()(generated)])
    causal = torch.arange(total)[:, None] >= torch.arange(total)[None, :]
    for number, layer in enumerate(decoder.layers):
        if change and number in change:
            hidden = torch.cat([change[number](hidden[:length]), hidden[length:]])
        kept = torch.isin(raster, trace.kept(number, sample)) & is_visual
        visible = causal & (~is_visual | kept)[None, :]
        for place, step in enumerate(steps, start=length):
            held = torch.isin(raster, trace.cached(number, step, sample)) & is_visual
            visible[place] = causal[place] & (~is_visual | held)
        for token, columns in (hidden_from or {}).items():
            visible[length + token, columns] = False
        visible |= torch.eye(total, dtype=torch.bool)  # a dropped token sees itself: nobody sees it
        if renumber:
            alive = ~is_visual | kept
            positions = torch.cumsum(alive, 0) - 1
            positions = positions.clamp(min=0)
        else:
            positions = torch.arange(total)
        hidden = layer_output(layer, decoder.rotary_emb, hidden, positions, visible)
    return model.lm_head(decoder.norm(hidden))


def layer_output(layer: Any, rotary: Any, hidden: Tensor, positions: Tensor, visible: Tensor) -> Tensor:
    """[T, D]: one decoder layer over ``hidden`` [T, D]; ``visible`` bool [T, T] says who sees whom."""
    attention = layer.self_attn
    normed = layer.input_layernorm(hidden)
    width = attention.head_dim
    query, key, value = (
        projection(normed).view(len(hidden), -1, width).transpose(0, 1)
        for projection in (attention.q_proj, attention.k_proj, attention.v_proj)
    )
    cos, sin = (table[0] for table in rotary(hidden.unsqueeze(0), positions.unsqueeze(0)))
    query, key = _rotate(query, cos, sin), _rotate(key, cos, sin)
    groups = query.shape[0] // key.shape[0]
    mixed: list[Tensor] = []
    for head in range(query.shape[0]):
        scores = query[head] @ key[head // groups].T * width**-0.5
        weights = torch.softmax(scores.masked_fill(~visible, float("-inf")), dim=-1)
        mixed.append(weights @ value[head // groups])
    hidden = hidden + attention.o_proj(torch.cat(mixed, dim=-1))
    return hidden + layer.mlp(layer.post_attention_layernorm(hidden))


def _rotate(vectors: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding in its textbook form: pairs (i, i + half) turned by the position's angle."""
    half = vectors.shape[-1] // 2
    first, second = vectors[..., :half], vectors[..., half:]
    turned = torch.cat([-second, first], dim=-1)
    return vectors * cos + turned * sin
