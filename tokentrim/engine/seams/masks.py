"""Attention masks of a shortened sequence, made by transformers' own mask functions for the kernel in use."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from transformers.masking_utils import (
    AttentionMaskInterface,
    and_masks,
    blockwise_overlay,
    causal_mask_function,
    or_masks,
)

from tokentrim.engine.tokens.stream import Sight

_MASKS = AttentionMaskInterface()
_CAUSAL_ALONE = "flash"
"""Kernels that take no mask but of padding: under them every model sees what is before a token alone."""


def takes_masks(implementation: str) -> bool:
    """Whether an attention implementation lets tokens see others behind them, where a mask says so."""
    return not implementation.startswith(_CAUSAL_ALONE)


def window_in(config: Any) -> int | None:
    """Tokens that sliding-window attention of a text config sees, or None where attention has no window."""
    return getattr(config, "sliding_window", None) if getattr(config, "use_sliding_window", True) else None


def of_padding(mask: Any, entry_mask: Any) -> Any:
    """The mask of padding that the language model runs under.

    Args:
        mask: as the language model is handed it: one that its entry has made for each kind of layer, or of padding.
        entry_mask: as the entry was handed it.
    """
    return entry_mask if isinstance(mask, Mapping) else mask


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
    sight: Sight | None = None,
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
        sight: whom the columns see; None where simply all that is before them.
    """
    if queries == 1 and valid is None and sight is None:
        return None
    make = _MASKS[implementation] if implementation in _MASKS else _MASKS["eager"]
    return make(
        batch_size=batch,
        q_length=queries,
        kv_length=keys,
        q_offset=keys - queries,
        kv_offset=0,
        mask_function=_rule(sight),
        attention_mask=valid,
        allow_is_causal_skip=valid is None and sight is None,
        dtype=dtype,
        config=config,
        use_vmap=False,
        device=device,
    )


def _rule(sight: Sight | None) -> Callable[..., Any]:
    """What transformers asks of every pair of a query and a key."""
    rule: Callable[..., Any] = causal_mask_function
    if sight is None:
        return rule
    if sight.mutual is not None:
        rule = or_masks(rule, blockwise_overlay(sight.mutual))
    places, window = sight.places, sight.window
    if window is None:
        return rule

    def near(batch: Any, head: Any, query: Any, key: Any) -> Any:
        return places[batch, key] > places[batch, query] - window

    return and_masks(rule, near)
