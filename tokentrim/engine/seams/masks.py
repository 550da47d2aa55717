"""Attention masks of a shortened sequence, made by transformers' own mask functions for the kernel in use."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.masking_utils import AttentionMaskInterface, causal_mask_function

_MASKS = AttentionMaskInterface()


def causal_mask(
    implementation: str,
    config: Any,
    *,
    batch: int,
    queries: int,
    keys: int,
    valid: Tensor | None,
    dtype: torch.dtype,
    device: torch.device,
) -> Any:
    """Mask for ``queries`` new columns at the end of ``keys`` columns, in the form that ``implementation`` wants.

    Returns None where the kernel needs no mask (nothing padded, and causality is the kernel's own flag).

    Args:
        implementation: name of the attention implementation (sdpa, eager, flex_attention, flash_attention_2, ...).
        config: the text config.
        batch: rows.
        queries: new columns.
        keys: all columns, cached ones included.
        valid: bool [B, keys], False in padding; None when nothing is padded.
        dtype: dtype of additive masks.
        device: where to build it.
    """
    if queries == 1 and valid is None:
        return None
    make = _MASKS[implementation] if implementation in _MASKS else _MASKS["eager"]
    return make(
        batch_size=batch,
        q_length=queries,
        kv_length=keys,
        q_offset=keys - queries,
        kv_offset=0,
        mask_function=causal_mask_function,
        attention_mask=valid,
        allow_is_causal_skip=valid is None,
        dtype=dtype,
        config=config,
        use_vmap=False,
        device=device,
    )
