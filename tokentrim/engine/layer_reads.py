"""What a boundary is shown of the decoder layers beside it: read while layer b-1 attends, or asked of layer b."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from tokentrim.contracts.adapter import Layout
from tokentrim.contracts.selection import Selection
from tokentrim.contracts.sites import Need
from tokentrim.engine.seams import attention, attention_rows
from tokentrim.engine.seams.attention import AttentionCall
from tokentrim.engine.seams.private import device_of
from tokentrim.engine.seams.sharding import SharedHeads
from tokentrim.engine.tokens.stream import Sight, Stream, moved
from tokentrim.errors import UnsupportedError, complaint

_TOKENS_AT = {Need.KEYS: 2, Need.VALUES: 2, Need.HIDDEN_BEFORE: 1}
"""The dimension in which visual tokens lie in what was read; the last one elsewhere."""
_CACHES = ("past_key_values", "past_key_value")
"""Arguments of a decoder layer that hold a cache."""


def read(
    wanted: frozenset[Need],
    call: AttentionCall,
    stream: Stream,
    start: Stream,
    heads: SharedHeads,
    window: int,
    sight: Sight | None = None,
) -> dict[Need, Any]:
    """What is asked for of the layer that makes ``call``.

    Args:
        wanted: needs; those that attention does not show are left out.
        call: with the columns of ``stream``.
        stream: the current columns.
        start: those of the whole prompt.
        heads: completes what one of several processes reads.
        window: trailing prompt tokens whose rows ``Need.WINDOW_ROWS`` wants.
        sight: whom the columns see in this layer, where not simply all that is before them.
    """
    query, key, scaling, valid = call.query, call.key, call.scaling, stream.valid
    found: dict[Need, Any] = {}
    if Need.LAST_ROW in wanted:
        found[Need.LAST_ROW] = _last_row(call, stream, sight)
    if Need.TEXT_ROWS in wanted:
        columns, real = stream.text()
        found[Need.TEXT_ROWS] = _rows_at(call, stream, columns, real, sight), real
    if Need.WINDOW_ROWS in wanted:
        found[Need.WINDOW_ROWS] = _window(call, stream, window, sight)
    if Need.COLUMN_MEAN in wanted:
        found[Need.COLUMN_MEAN] = attention_rows.column_mean(query, key, scaling, stream.vis_pos, valid, sight)
    for need, tensor in ((Need.KEYS, key), (Need.VALUES, call.value)):
        if need in wanted:
            found[need] = attention_rows.pick_rows(tensor, stream.vis_pos)
    if Need.TEXT_KEYS in wanted:
        columns, real = stream.text()
        found[Need.TEXT_KEYS] = attention_rows.pick_rows(key, columns), real, behind(stream, start, columns, real)
    whole = {need: heads.whole(what) for need, what in found.items()}
    if Need.HEAD_PEAKS in wanted:
        columns, real = stream.text()
        text = columns.masked_fill(~behind(stream, start, columns, real), stream.length)
        asks = torch.zeros(stream.rows, stream.length + 1, dtype=torch.bool, device=query.device)
        groups = torch.stack([stream.visual_mask(), asks.scatter(1, text, True)[:, :-1]], dim=1)
        peaks = attention_rows.peaks(query, key, scaling, groups, valid, heads.whole, sight)
        whole[Need.HEAD_PEAKS] = peaks.gather(2, stream.vis_pos.unsqueeze(1).expand(-1, 2, -1))
    return whole


def behind(stream: Stream, start: Stream, columns: Tensor, real: Tensor) -> Tensor:
    """bool [B, T]: which of the text tokens at ``columns`` come after the last visual token of the whole prompt."""
    return real & (stream.columns.gather(1, columns) > start.last_visual())


def next_row(
    layout: Layout,
    layer: int,
    hidden: Tensor,
    kwargs: Mapping[str, Any],
    stream: Stream,
    *,
    rotary: bool = True,
    sight: Sight | None = None,
) -> Tensor:
    """float32 [B, H of this process, N]: attention of the last prompt token in ``layer``, which has not run yet.

    The layer is run on ``hidden`` up to its attention, without a cache: its own norm, projections and RoPE.

    Args:
        layout: the located modules.
        layer: its number.
        hidden: [B, T, D], about to enter it.
        kwargs: what it is about to be handed besides.
        stream: the columns of ``hidden``.
        rotary: whether queries and keys are turned as always; else not at all.
        sight: whom the columns see in this layer, where not simply all that is before them.

    Raises:
        UnsupportedError: when the layer does not call its attention function.
    """
    module, found = layout.attentions[layer], list[Tensor]()

    def look(call: AttentionCall) -> attention.Attended:
        found.append(_last_row(call, stream, sight))
        raise _Enough

    given: dict[str, Any] = {name: moved(what, hidden.device) for name, what in kwargs.items() if name not in _CACHES}
    given |= {**dict.fromkeys(_CACHES & kwargs.keys()), "hidden_states": hidden}
    if not rotary:
        cos, sin = given["position_embeddings"]
        given["position_embeddings"] = torch.ones_like(cos), torch.zeros_like(sin)
    with attention.observing({module: look}, layout.text_config), torch.no_grad():
        try:
            # Not the call, which would run its hooks: nobody is to see the layer run twice.
            layout.layers[layer].forward(given.pop("hidden_states"), **given)
        except _Enough:
            return found[0]
    raise UnsupportedError(
        complaint(f"Need.{Need.NEXT_ROW.name}", "be of a decoder layer that calls its attention function",
                  type(layout.layers[layer]).__name__, "rank by the layer before the boundary: Need.LAST_ROW")
    )  # fmt: skip


def normed(layout: Layout, vectors: Tensor) -> Tensor:
    """``vectors`` through the final normalisation, which may be on a device of its own; nobody's hooks see it."""
    norm: Any = layout.final_norm  # a model without one is refused to a strategy that needs it
    with torch.no_grad():
        return norm.forward(vectors.to(device_of(norm))).to(vectors.device)


def window_mean(call: AttentionCall, stream: Stream, window: int, sight: Sight | None = None) -> Tensor:
    """float32 [B, H of this process, N]: mean of the last ``window`` prompt tokens' rows, visual columns alone."""
    rows, real = _window(call, stream, min(window, stream.length), sight)
    return rows.sum(dim=2) / real.sum(dim=1).clamp(min=1)[:, None, None]


class _Enough(Exception):
    """Ends a layer's forward that is run for its attention row alone."""


def pick(need: Need, what: Any, selection: Selection) -> Any:
    """What was read for ``need``, of the kept tokens alone."""
    if need == Need.TEXT_KEYS:
        return what
    if isinstance(what, tuple):  # rows [B, H, T, N] and which of the T are real
        rows, real = what
        return pick(need, rows, selection), real
    axis = _TOKENS_AT.get(need, -1)
    slots = selection.kept[:, : max(selection.counts, default=0)].clamp(min=0)
    shape = [slots.shape[0]] + [1] * (what.dim() - 1)
    shape[axis] = slots.shape[1]
    wanted = list(what.shape)
    wanted[axis] = slots.shape[1]
    return what.gather(axis, slots.reshape(shape).expand(wanted))


def _last_row(call: AttentionCall, stream: Stream, sight: Sight | None) -> Tensor:
    """float32 [B, H, N]: the visual columns of the last prompt token's row."""
    row = attention_rows.last_row(call.query, call.key, call.scaling, stream.last_columns(), stream.valid, sight)
    return attention_rows.pick_visual(row, stream.vis_pos)[:, :, 0]


def _window(call: AttentionCall, stream: Stream, window: int, sight: Sight | None) -> tuple[Tensor, Tensor]:
    """Rows [B, H, W, N] of the last W = ``window`` prompt tokens, zero where bool [B, W] says that there is none."""
    last = stream.last_columns()
    end = call.query.new_full((stream.rows,), stream.length - 1, dtype=torch.long) if last is None else last
    columns = end.unsqueeze(1) - torch.arange(window - 1, -1, -1, device=end.device)
    real = columns >= 0
    columns = columns.clamp(min=0)
    if stream.valid is not None:
        real = real & stream.valid.gather(1, columns)
    return _rows_at(call, stream, columns, real, sight), real


def _rows_at(call: AttentionCall, stream: Stream, columns: Tensor, real: Tensor, sight: Sight | None) -> Tensor:
    visible = attention_rows.causal_visible(columns, call.key.shape[2], stream.valid, real, sight)
    rows = attention_rows.attention_rows(attention_rows.pick_rows(call.query, columns), call.key, call.scaling, visible)
    return attention_rows.pick_visual(rows, stream.vis_pos)
