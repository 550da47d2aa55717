"""Chosen rows of an attention matrix, computed beside the fused kernel. No N x N map exists anywhere."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from tokentrim.contracts.sites import Need
from tokentrim.engine.tokens.stream import Sight

_BLOCK = 128
"""Queries per block of a sum over all of them: bounds its memory to heads x 128 x keys."""


def attention_rows(query: Tensor, key: Tensor, scaling: float, visible: Tensor | None) -> Tensor:
    """float32 [B, H, R, K]: softmax(query key^T * scaling) over the visible keys.

    Args:
        query: [B, H, R, head_dim], after RoPE.
        key: [B, H_kv, K, head_dim], after RoPE; H is a multiple of H_kv.
        scaling: usually head_dim ** -0.5.
        visible: bool, broadcastable to [B, 1, R, K]; None when every key is visible.
    """
    batch, heads, n_rows, width = query.shape
    kv_heads = key.shape[1]
    # Grouped heads share a key: fold the group into the row axis instead of repeating keys.
    grouped = (query * scaling).reshape(batch, kv_heads, (heads // kv_heads) * n_rows, width)
    scores = torch.matmul(grouped, key.transpose(-1, -2)).reshape(batch, heads, n_rows, key.shape[2])
    scores = scores.float()
    if visible is not None:
        scores = scores.masked_fill(~visible, float("-inf"))
    weights = torch.softmax(scores, dim=-1)
    # A padded row sees no key at all: its softmax is NaN by definition, zero by agreement. Any other NaN stays.
    return weights if visible is None else weights.masked_fill(~visible, 0.0)


def pick_rows(query: Tensor, columns: Tensor) -> Tensor:
    """[B, H, R, head_dim]: the queries at ``columns`` [B, R]."""
    index = columns[:, None, :, None].expand(-1, query.shape[1], -1, query.shape[3])
    return query.gather(2, index)


def pick_visual(rows: Tensor, vis_pos: Tensor) -> Tensor:
    """[B, H, R, N]: the visual columns of attention rows [B, H, R, K]."""
    index = vis_pos[:, None, None, :].expand(-1, rows.shape[1], rows.shape[2], -1)
    return rows.gather(3, index)


def causal_visible(
    columns: Tensor, n_keys: int, valid: Tensor | None, real: Tensor | None = None, sight: Sight | None = None
) -> Tensor:
    """bool [B, 1, R, K]: keys that the queries at ``columns`` [B, R] may see; none where ``real`` [B, R] is False.

    Those before them, or whom ``sight`` says.
    """
    if sight is None:
        visible = columns.unsqueeze(-1) >= torch.arange(n_keys, device=columns.device)
    else:
        visible = sight.visible(columns)
    if valid is not None:
        visible = visible & valid.unsqueeze(1)
    if real is not None:
        visible = visible & real.unsqueeze(2)
    return visible.unsqueeze(1)


def last_row(
    query: Tensor,
    key: Tensor,
    scaling: float,
    last: Tensor | None,
    valid: Tensor | None,
    sight: Sight | None = None,
) -> Tensor:
    """float32 [B, H, 1, K]: the row of the last real query; ``last`` [B] or None for the last column."""
    row = query[:, :, -1:] if last is None else pick_rows(query, last.unsqueeze(1))
    if sight is not None and sight.window is not None:
        at = torch.full((len(key),), key.shape[2] - 1, device=key.device) if last is None else last
        return attention_rows(row, key, scaling, causal_visible(at.unsqueeze(1), key.shape[2], valid, None, sight))
    return attention_rows(row, key, scaling, None if valid is None else valid[:, None, None, :])


def attend(weights: Tensor, value: Tensor, query: Tensor) -> tuple[Tensor, Tensor]:
    """[B, R, H, head_dim]: values averaged by ``weights``, as an attention function returns it, and the weights used.

    Args:
        weights: float32 [B, H, R, K], not all zero in any row; scaled here to sum to one.
        value: [B, H_kv, K, head_dim]; H is a multiple of H_kv.
        query: whose dtype the result gets.
    """
    batch, heads, n_rows, keys = weights.shape
    kv_heads = value.shape[1]
    weights = (weights / weights.sum(-1, keepdim=True)).to(value.dtype)
    mixed = torch.matmul(weights.reshape(batch, kv_heads, (heads // kv_heads) * n_rows, keys), value)
    return mixed.reshape(batch, heads, n_rows, -1).transpose(1, 2).contiguous().to(query.dtype), weights


def received(
    query: Tensor,
    key: Tensor,
    scaling: float,
    valid: Tensor | None,
    *,
    causal: bool = True,
    sight: Sight | None = None,
) -> Tensor:
    """float32 [B, H, K]: attention that every key receives, summed over the real queries, in blocks.

    Args:
        query: [B, H, T, head_dim].
        key: [B, H_kv, K, head_dim].
        scaling: usually head_dim ** -0.5.
        valid: bool [B, K], False in padding; None when nothing is padded.
        causal: whether query i sees keys 0..i alone; else every query sees every key, and nothing may be padded.
        sight: whom they see, where not simply all that is before them.
    """
    batch, heads = query.shape[:2]
    total = torch.zeros(batch, heads, key.shape[2], dtype=torch.float32, device=query.device)
    for _, rows in _in_blocks(query, key, scaling, valid, causal=causal, sight=sight):
        total += rows.sum(dim=2)
    return total


def peaks(
    query: Tensor,
    key: Tensor,
    scaling: float,
    groups: Tensor,
    valid: Tensor | None,
    whole: Callable[[Tensor], Tensor],
    sight: Sight | None = None,
) -> Tensor:
    """float32 [B, G, K]: the largest attention of all heads from each query to each key, summed over groups of queries.

    In blocks, causal.

    Args:
        query: [B, H, T, head_dim].
        key: [B, H_kv, T, head_dim].
        scaling: usually head_dim ** -0.5.
        groups: bool [B, G, T]: the queries of each group.
        valid: bool [B, T], False in padding; None when nothing is padded.
        whole: completes heads [B, H of this process, ...] by those of other processes.
        sight: whom they see, where not simply all that is before them.
    """
    total = torch.zeros(*groups.shape[:2], key.shape[2], dtype=torch.float32, device=query.device)
    for start, rows in _in_blocks(query, key, scaling, valid, causal=True, sight=sight):
        peak = whole(rows.amax(dim=1, keepdim=True)).amax(dim=1)
        total += torch.matmul(groups[:, :, start : start + _BLOCK].float(), peak)
    return total


def _in_blocks(
    query: Tensor, key: Tensor, scaling: float, valid: Tensor | None, *, causal: bool, sight: Sight | None
) -> Iterator[tuple[int, Tensor]]:
    """(number of the first query, attention rows float32 [B, H, block, K]), block after block."""
    for start in range(0, query.shape[2], _BLOCK):
        block, visible = query[:, :, start : start + _BLOCK], None
        if causal:
            columns = torch.arange(start, start + block.shape[2], device=query.device).expand(len(block), -1)
            real = None if valid is None else valid[:, start : start + _BLOCK]
            visible = causal_visible(columns, key.shape[2], valid, real, sight)
        yield start, attention_rows(block, key, scaling, visible)


def column_mean(
    query: Tensor,
    key: Tensor,
    scaling: float,
    vis_pos: Tensor,
    valid: Tensor | None,
    sight: Sight | None = None,
) -> Tensor:
    """float32 [B, H, N]: attention that visual keys receive, averaged over the real queries."""
    total = received(query, key, scaling, valid, sight=sight).unsqueeze(2)
    n_real = query.shape[2] if valid is None else valid.sum(1)[:, None, None]
    return pick_visual(total, vis_pos)[:, :, 0] / n_real


def tower_reading(need: Need, query: Tensor, key: Tensor, scaling: float, *, has_cls: bool) -> Tensor:
    """float [pieces, H, tokens]: what a need reads of one attention call of a vision tower, in which all see all.

    Args:
        need: one of ``FROM_TOWER``; keys are [pieces, H * head_dim, tokens].
        query: [pieces, H, tokens, head_dim].
        key: [pieces, H_kv, tokens, head_dim].
        scaling: usually head_dim ** -0.5.
        has_cls: whether token 0 of each piece is a [CLS] token, which then asks; else all do, and the mean counts.
    """
    if need == Need.VISION_WIDE:
        groups, scaling = query.shape[1] // key.shape[1], scaling / query.shape[1] ** 0.5
        query, key = (t.transpose(1, 2).flatten(2)[:, None] for t in (query, key.repeat_interleave(groups, dim=1)))
    if need == Need.VISION_KEYS:
        return key.transpose(2, 3).flatten(1, 2)
    if need == Need.VISION_LOGITS:
        asking = query[:, :, :1] if has_cls else query.float().mean(dim=2, keepdim=True)
        return torch.matmul(asking.float() * scaling, key.float().transpose(2, 3))[:, :, 0]
    if need in (Need.VISION_ROWS, Need.VISION_WIDE) and has_cls:
        return attention_rows(query[:, :, :1], key, scaling, None)[:, :, 0]
    return received(query, key, scaling, None, causal=False) / query.shape[2]
