"""Position ids of a shortened sequence, with one row per sample or, under M-RoPE, one per axis and sample.

Forms in use: [B or 1, T]; [3, B, T] (time, height, width); [4, B, T] (the text's own count, then the three axes). A
decoder layer is handed the text's count alone, in (cos, sin) the axes are folded together already.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from tokentrim.engine.tokens.stream import Stream

_AXES_WITH_TEXT = 4


def of_call(arguments: Mapping[str, Any], start: int, columns: int, device: torch.device) -> Tensor:
    """The position ids that a forward was given; else what it would count for ``columns`` columns behind ``start``."""
    given: Tensor | None = arguments.get("position_ids")
    return torch.arange(start, start + columns, device=device).unsqueeze(0) if given is None else given.to(device)


def take_columns(position_ids: Tensor, order: Tensor) -> Tensor:
    """Columns ``order`` [B, T_new] of position ids in any form."""
    batch = order.shape[0]
    if position_ids.dim() == 3:
        axes = position_ids.shape[0]
        return position_ids.expand(axes, batch, -1).gather(2, order.expand(axes, -1, -1))
    return position_ids.expand(batch, -1).gather(1, order)


def contiguous(position_ids: Tensor, before: Stream, after: Stream) -> Tensor:
    """Contiguous ids for ``after`` that start where each row of ``before`` started, in the form of ``position_ids``.

    Not where its first survivor was: new tokens continue from the old end less what is gone, wherever it was.
    """
    first = _first(position_ids, before)
    places = torch.arange(after.length, device=position_ids.device)
    pads = torch.tensor([after.length - real for real in after.real], device=position_ids.device).unsqueeze(1)
    line = (places - pads).clamp(min=0) + first
    return line if position_ids.dim() == 2 else line.expand(position_ids.shape[0], -1, -1)


def renumbered(taken: Tensor, position_ids: Tensor, before: Stream, after: Stream) -> Tensor:
    """Contiguous ids for the rows of ``after`` that lack a token, and ``taken``, their own, for the others.

    Without axes the two are the same for a row that lacks none.

    Args:
        taken: the columns of ``after`` out of ``position_ids``.
        position_ids: of ``before``.
        before: the columns that there were.
        after: the columns that are left.
    """
    line = contiguous(position_ids, before, after)
    if position_ids.dim() == 2 or after.dropped is None:
        return line
    return torch.where((after.dropped > 0).unsqueeze(1), line, taken)


def surplus(position_ids: Tensor, stream: Stream) -> Tensor | None:
    """int64 [B]: how far the ids of a whole prompt reach beyond its number of tokens; None where they just count.

    Negative under M-RoPE, where a picture takes as many ids as its longer side, not as it has tokens. A new token's
    id is the prompt's length plus this, whatever was pruned.
    """
    if position_ids.dim() == 2:
        return None
    line = position_ids[-1].expand(stream.rows, -1)
    last = stream.last_columns()
    end = line[:, -1] if last is None else line.gather(1, last.unsqueeze(1))[:, 0]
    real = torch.tensor(stream.real, device=line.device)
    return end + 1 - _first(position_ids, stream)[:, 0] - real


def of_layers(position_ids: Tensor) -> Tensor | None:
    """What decoder layers are handed: the text's own count, where there is one."""
    if position_ids.dim() == 2:
        return position_ids
    return position_ids[0] if position_ids.shape[0] == _AXES_WITH_TEXT else None


def of_rotary(position_ids: Tensor) -> Tensor:
    """What the rotary module is handed: all axes, without the text's own count."""
    return position_ids[1:] if position_ids.dim() == 3 and position_ids.shape[0] == _AXES_WITH_TEXT else position_ids


def _first(position_ids: Tensor, stream: Stream) -> Tensor:
    """int64 [B, 1]: the lowest id of each row's real tokens."""
    line = (position_ids[-1] if position_ids.dim() == 3 else position_ids).expand(stream.rows, -1)
    if stream.valid is not None:
        line = line.masked_fill(~stream.valid, torch.iinfo(torch.int64).max)
    return line.amin(dim=1, keepdim=True)
