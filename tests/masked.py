"""The reference for any family: the untouched model itself, with a 4-D mask of its own in every layer.

Nothing is removed: a pruned token stays in the sequence, and what others may see of it is masked away. One sample at
a time, no padding, no cache.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from tokentrim.session import adapter_of
from tokentrim.trace import Trace

Change = Callable[[Tensor], Tensor]


def masked_logits(
    model: Any,
    inputs: dict[str, Any],
    generated: Tensor,
    trace: Trace,
    *,
    visual: Tensor,
    sample: int = 0,
    renumber: bool = False,
    change: dict[int, Change] | None = None,
) -> Tensor:
    """[T + G, V]: logits of a prompt and of the tokens that followed it, under the kept sets of ``trace``.

    Args:
        model: the untouched model.
        inputs: a prompt of one row, without padding.
        generated: [G] tokens that followed, one per decode forward.
        trace: which visual tokens each layer kept, and which its cache held at every step.
        visual: bool [T], the visual tokens of the prompt (structure is none).
        sample: the trace's row.
        renumber: positions are contiguous in every layer that lacks a token, instead of the original ones.
        change: boundary -> what happens to the prompt's hidden states [T, D] there (merging).
    """
    layout = adapter_of(model).locate(model)
    length, extra = len(visual), len(generated)
    total = length + extra
    is_visual = torch.cat([visual, torch.zeros(extra, dtype=torch.bool)])
    raster = torch.cumsum(is_visual, 0) - 1
    causal = torch.arange(total)[:, None] >= torch.arange(total)[None, :]

    def hook(number: int) -> Callable[..., Any]:
        kept = torch.isin(raster, trace.kept(number, sample)) & is_visual
        visible = causal & (~is_visual | kept)[None, :]
        for step, place in enumerate(range(length, total), start=1):
            held = torch.isin(raster, trace.cached(number, step, sample)) & is_visual
            visible[place] = causal[place] & (~is_visual | held)
        visible |= torch.eye(total, dtype=torch.bool)  # a dropped token sees itself: nobody sees it

        def replace(module: Any, args: Any, kwargs: dict[str, Any]) -> Any:
            hidden = args[0] if args else kwargs["hidden_states"]
            if change and number in change:
                hidden = torch.cat([change[number](hidden[0, :length]), hidden[0, length:]]).unsqueeze(0)
            mask = torch.zeros(1, 1, total, total, dtype=hidden.dtype)
            kwargs = {**kwargs, "attention_mask": mask.masked_fill(~visible, torch.finfo(hidden.dtype).min)}
            if renumber and not bool(kept[:length][visual].all()):
                line = (torch.cumsum(~is_visual | kept, 0) - 1).clamp(min=0).unsqueeze(0)
                line = line.expand(3, 1, -1) if layout.mrope else line
                kwargs["position_embeddings"] = layout.rotary(hidden, line)
            return ((hidden, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": hidden})

        return replace

    handles = [
        layer.register_forward_pre_hook(hook(number), with_kwargs=True) for number, layer in enumerate(layout.layers)
    ]
    whole = {**inputs, "input_ids": torch.cat([inputs["input_ids"][0], generated]).unsqueeze(0)}
    whole.pop("attention_mask", None)
    if "mm_token_type_ids" in inputs:
        kinds = inputs["mm_token_type_ids"][0]
        whole["mm_token_type_ids"] = torch.cat([kinds, kinds.new_zeros(extra)]).unsqueeze(0)
    try:
        with torch.no_grad():
            return model(**whole, use_cache=False).logits[0]
    finally:
        for handle in handles:
            handle.remove()
