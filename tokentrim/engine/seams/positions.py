"""Position ids of a shortened sequence, with one row per sample or, under M-RoPE, one per axis and sample.

Forms in use: [B or 1, T]; [3, B, T] (time, height, width); [4, B, T] (the text's own count, then the three axes). A
decoder layer is handed the text's count alone, in (cos, sin) the axes are folded together already.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from tokentrim.contracts.adapter import Layout
from tokentrim.engine.tokens.stream import Stream, gather_columns, moved

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


@dataclass(frozen=True)
class Tables:
    """(cos, sin) of the columns that are left, for every layer those of its own kind, made once for each kind.

    Attributes:
        layout: the located modules.
        order: int64 [B, T_new], which columns of what the model's loop hands a layer are left; None = all.
        ids: position ids of the columns that are left, in any form, where the model's own are left behind; else None.
    """

    layout: Layout
    order: Tensor | None = None
    ids: Tensor | None = None
    _made: dict[str, tuple[Tensor, Tensor]] = field(init=False, default_factory=dict[str, tuple[Tensor, Tensor]])

    def made_for(self, ids: Tensor) -> Tables:
        """Those of other position ids."""
        return Tables(self.layout, ids=ids)

    def taken(self, orders: Sequence[Tensor], ids: Tensor) -> Tables:
        """Those of the columns ``orders``, cut after cut, whose position ids are ``ids``."""
        if self.ids is not None:
            return self.made_for(ids)
        order = self.order
        for now in orders:
            order = now if order is None else moved(order, now.device).gather(1, now)
        return Tables(self.layout, order)

    def of(self, layer: int, hidden: Tensor, kwargs: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
        """What ``layer`` takes, which is handed ``kwargs`` by the model's loop."""
        kind = self.layout.rotary_kind(layer)
        if kind not in self._made:
            if self.ids is None:
                cos, sin = moved(kwargs["position_embeddings"], hidden.device)
                order = moved(self.order, hidden.device)
                self._made[kind] = (
                    (cos, sin) if order is None else (gather_columns(cos, order), gather_columns(sin, order))
                )
            else:
                made = self.layout.position_embeddings(layer, hidden, of_rotary(self.ids))
                self._made[kind] = moved(made, hidden.device)  # where accelerate has a device for the rotary module
        return self._made[kind]


def _first(position_ids: Tensor, stream: Stream) -> Tensor:
    """int64 [B, 1]: the lowest id of each row's real tokens."""
    line = (position_ids[-1] if position_ids.dim() == 3 else position_ids).expand(stream.rows, -1)
    if stream.valid is not None:
        line = line.masked_fill(~stream.valid, torch.iinfo(torch.int64).max)
    return line.amin(dim=1, keepdim=True)
