"""The reference for any family: the untouched model itself, with a 4-D mask of its own in every layer.

Nothing is removed: a pruned token stays in the sequence, and what others may see of it is masked away. One sample at
a time, no padding, no cache.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from tokentrim.contracts.adapter import Layout
from tokentrim.engine.tokens.trace import Trace

Change = Callable[[Tensor], Tensor]


def masked_logits(
    model: Any,
    layout: Layout,
    inputs: dict[str, Any],
    generated: Tensor,
    trace: Trace,
    *,
    visual: Tensor,
    sample: int = 0,
    mutual: Tensor | None = None,
    renumber: bool = False,
    change: dict[int, Change] | None = None,
) -> Tensor:
    """[T + G, V]: logits of a prompt and of the tokens that followed it, under the kept sets of ``trace``.

    Args:
        model: the untouched model.
        layout: its located modules.
        inputs: a prompt of one row, without padding.
        generated: [G] tokens that followed, one per decode forward.
        trace: which visual tokens each layer kept, and which its cache held at every step.
        visual: bool [T], the visual tokens of the prompt (structure is none).
        sample: the trace's row.
        mutual: int64 [T], runs of the prompt's tokens that see each other in both directions, -1 elsewhere; None where
            all see what is before them alone.
        renumber: positions are contiguous in every layer that lacks a token, instead of the original ones.
        change: boundary -> what happens to the prompt's hidden states [T, D] there (merging).
    """
    length, extra = len(visual), len(generated)
    total = length + extra
    is_visual = torch.cat([visual, torch.zeros(extra, dtype=torch.bool)])
    raster = torch.cumsum(is_visual, 0) - 1
    causal = torch.arange(total)[:, None] >= torch.arange(total)[None, :]
    if mutual is not None:
        runs = torch.cat([mutual, mutual.new_full((extra,), -1)])
        causal = causal | ((runs[:, None] == runs) & (runs >= 0))

    def hook(number: int) -> Callable[..., Any]:
        kept = torch.isin(raster, trace.kept(number, sample)) & is_visual
        visible = causal & (~is_visual | kept)[None, :]
        for step, place in enumerate(range(length, total), start=1):
            held = torch.isin(raster, trace.cached(number, step, sample)) & is_visual
            visible[place] = causal[place] & (~is_visual | held)
        window = layout.window_of(number, total)
        if window is not None:
            visible &= torch.arange(total)[None, :] > torch.arange(total)[:, None] - window
        visible |= torch.eye(total, dtype=torch.bool)  # a dropped token sees itself: nobody sees it

        def replace(module: Any, args: Any, kwargs: dict[str, Any]) -> Any:
            hidden: Tensor = args[0] if args else kwargs["hidden_states"]
            if change and number in change:
                hidden = torch.cat([change[number](hidden[0, :length]), hidden[0, length:]]).unsqueeze(0)
            mask = torch.zeros(1, 1, total, total, dtype=hidden.dtype)
            kwargs = {**kwargs, "attention_mask": mask.masked_fill(~visible, torch.finfo(hidden.dtype).min)}
            if renumber and not bool(kept[:length][visual].all()):
                line = (torch.cumsum(~is_visual | kept, 0) - 1).clamp(min=0).unsqueeze(0)
                line = line.expand(3, 1, -1) if layout.mrope else line
                kwargs["position_embeddings"] = layout.position_embeddings(number, hidden, line)
            return ((hidden, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": hidden})

        return replace

    handles = [
        layer.register_forward_pre_hook(hook(number), with_kwargs=True) for number, layer in enumerate(layout.layers)
    ]
    try:
        with torch.no_grad():
            return model(**extended(inputs, generated), use_cache=False).logits[0]
    finally:
        for handle in handles:
            handle.remove()


def extended(inputs: dict[str, Any], generated: Tensor) -> dict[str, Any]:
    """A prompt of one row with [G] text tokens behind it, as its processor would have made it; no attention mask."""
    ids: Tensor = inputs["input_ids"]
    whole = {name: value for name, value in inputs.items() if name != "attention_mask"}
    for name, value in whole.items():
        if isinstance(value, Tensor) and value.shape == ids.shape and not value.is_floating_point():
            more = generated if name == "input_ids" else value.new_zeros(len(generated))
            whole[name] = torch.cat([value[0], more]).unsqueeze(0)
    return whole
