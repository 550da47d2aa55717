"""Plan how an eviction compacts a layer's cache without moving all that stays.

An eviction of ``e`` entries gives up the first ``e`` columns of a layer.

Attention of new tokens does not care in which order cached entries stand, because keys carry their positions already.
So whatever survives among the columns that are given up, at most ``e`` of them, moves into the holes that the evicted
entries leave further back: O(e) copies instead of O(cache). Where the order in which entries leave is known
beforehand, they are put in that order once, in front of the text, and an eviction moves nothing but an offset.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from tokentrim.contracts.selection import Selection
from tokentrim.engine.tokens.stream import Stream


@dataclass(frozen=True)
class Moves:
    """What an eviction does to the columns of a cache layer.

    Attributes:
        shift: columns that are given up in front, afterwards.
        source: int64 [B, W], columns that are copied first; None where nothing moves.
        target: int64 [B, W], where they are copied to; a pair of equal columns copies nothing.
    """

    shift: int
    source: Tensor | None = None
    target: Tensor | None = None

    def of_weights(self, weights: Tensor) -> Tensor:
        """Attention weights [B, H, R, K] over a layer's columns, with the columns where they are afterwards."""
        if self.source is not None and self.target is not None:
            heads_and_rows = weights.shape[1:3]
            source = self.source[:, None, None].expand(-1, *heads_and_rows, -1)
            target = self.target[:, None, None].expand(-1, *heads_and_rows, -1)
            weights = weights.scatter(3, target, weights.gather(3, source))
        return weights[..., self.shift :]


def fronted(stream: Stream, leaving: Tensor | None = None) -> tuple[Stream, Tensor]:
    """The stream with every row's visual columns in front of its text, and int64 [B, T_new]: each column's source.

    Rows end flush right, as :func:`evict` and :func:`evict_first` need it.

    Args:
        stream: columns of a layer's cache.
        leaving: int64 [B, N], slots of ``vis_ids`` in the order in which they will leave, padding first; None keeps
            raster order. With it ``vis_ids`` and ``vis_pos`` of the result stand in that order.
    """
    device, rows, width = stream.vis_pos.device, stream.rows, stream.vis_pos.shape[1]
    length = max(stream.real)
    pads = _column([length - real for real in stream.real], device)
    n_visual = _column(stream.n_visual, device)
    vis_pos, vis_ids, place = stream.vis_pos, stream.vis_ids, torch.arange(width, device=device)
    if leaving is not None:
        vis_pos, vis_ids, place = vis_pos.gather(1, leaving), vis_ids.gather(1, leaving), place - (width - n_visual)
    real_visual = vis_ids >= 0
    is_text = ~stream.visual_mask()
    if stream.valid is not None:
        is_text = is_text & stream.valid
    # A spare column takes what is written for padding, on either side.
    places = torch.full((rows, stream.length + 1), length, device=device)
    text_places = is_text.cumsum(1) - 1 + n_visual + pads
    places[:, :-1] = torch.where(is_text, text_places, length)
    new_pos = place + pads
    places.scatter_(1, vis_pos.masked_fill(~real_visual, stream.length), new_pos.masked_fill(~real_visual, length))
    source = torch.arange(stream.length, device=device).expand(rows, -1)
    order = torch.zeros(rows, length + 1, dtype=torch.int64, device=device)
    order = order.scatter_(1, places[:, :-1], source)[:, :length]
    after = replace(
        stream,
        length=length,
        valid=_valid(stream.real, length, device),
        columns=stream.columns.gather(1, order),
        vis_pos=new_pos.masked_fill(~real_visual, 0).expand(rows, -1),
        vis_ids=vis_ids,
        flush=True,
    )
    return after, order


def evict_first(stream: Stream, counts: tuple[int, ...]) -> tuple[Stream, Moves]:
    """Let the first entries of a stream that stands in leaving order go, until ``counts`` are left in each row."""
    real, length, shift = _after(stream, counts)
    width = max(counts, default=0)
    first = stream.vis_ids.shape[1] - width
    vis_ids, vis_pos = stream.vis_ids[:, first:], stream.vis_pos[:, first:] - shift
    if any(count != width for count in counts):
        places = torch.arange(width, device=vis_ids.device)
        gone = places < width - _column(counts, vis_ids.device)
        vis_ids, vis_pos = vis_ids.masked_fill(gone, -1), vis_pos.masked_fill(gone, 0)
    after = replace(
        stream,
        length=length,
        valid=_valid(real, length, vis_ids.device),
        real=real,
        columns=stream.columns[:, shift:],
        vis_pos=vis_pos,
        vis_ids=vis_ids,
        n_visual=counts,
    )
    return after, Moves(shift)


def evict(stream: Stream, selection: Selection) -> tuple[Stream, Moves]:
    """Let everything go that ``selection`` does not keep, from a stream whose rows end flush right."""
    device, rows = stream.vis_pos.device, stream.rows
    counts = selection.counts
    if stream.valid is None and len(set(counts)) == 1 and len(set(stream.n_visual)) == 1:
        return _evict_evenly(stream, selection)
    real, length, shift = _after(stream, counts)
    leaving = [n - count for n, count in zip(stream.n_visual, counts, strict=True)]
    width = max(leaving, default=0)
    kept = selection.kept[:, : max(counts, default=0)]
    in_use = kept >= 0
    going = _complement(kept, in_use, stream, width)
    n_going = _column(leaving, device)
    start = _column([stream.length - n for n in stream.real], device)
    places = torch.arange(width, device=device)
    beyond = places >= n_going  # slots of rows that lose fewer

    spare = stream.length  # a column that does not exist takes what is written for padding
    holes = stream.vis_pos.gather(1, going).masked_fill(beyond, spare)
    front = (start + places).masked_fill(beyond, spare)
    is_hole = torch.zeros(rows, stream.length + 1, dtype=torch.bool, device=device).scatter_(1, holes, True)
    # Of the front, survivors first; of the holes, those behind the front first: as many as there are survivors.
    moving = min(width, length)
    source = _sorted_by(is_hole.gather(1, front).long() + beyond, front)[:, :moving]
    target = _sorted_by((holes < start + n_going).long() + beyond, holes)[:, :moving]
    still = is_hole.gather(1, source)  # no survivor, or no column at all
    to = torch.arange(stream.length + 1, device=device).repeat(rows, 1)
    to.scatter_(1, source.masked_fill(still, spare), target)
    # A pair with nothing to move copies the first column, which is given up, onto itself.
    source, target = torch.where(still, start, source), torch.where(still, start, target)
    safe = kept.clamp(min=0)
    vis_pos = to.gather(1, stream.vis_pos.gather(1, safe)) - shift
    after = replace(
        stream,
        length=length,
        valid=_valid(real, length, device),
        real=real,
        columns=_moved(stream.columns, source, target, shift),
        vis_pos=vis_pos.masked_fill(~in_use, 0),
        vis_ids=stream.vis_ids.gather(1, safe).masked_fill(~in_use, -1),
        n_visual=counts,
    )
    return after, Moves(shift, source, target) if moving else Moves(shift)


def _evict_evenly(stream: Stream, selection: Selection) -> tuple[Stream, Moves]:
    """As :func:`evict`, where every row loses equally many and nothing is padded: in less than half the steps.

    It runs in every layer at every step, so that on small caches its operations cost more than what they work on.
    """
    device, counts = stream.vis_pos.device, selection.counts
    real, length, shift = _after(stream, counts)
    kept, going = selection.kept[:, : counts[0]], selection.gone
    if going is None:
        going = _complement(kept, kept >= 0, stream, shift)
    holes = stream.vis_pos.gather(1, going)
    is_hole = torch.zeros(stream.rows, stream.length, dtype=torch.bool, device=device).scatter_(1, holes, True)
    # Survivors of the front into the holes behind it; what is left of both are columns that go anyway.
    source = torch.argsort(is_hole[:, :shift].byte(), dim=1, stable=True)
    target = _sorted_by((holes < shift).byte(), holes)
    to = torch.arange(-shift, length, device=device).repeat(stream.rows, 1).scatter_(1, source, target - shift)
    after = replace(
        stream,
        length=length,
        real=real,
        columns=_moved(stream.columns, source, target, shift),
        vis_pos=to.gather(1, stream.vis_pos.gather(1, kept)),
        vis_ids=stream.vis_ids.gather(1, kept),
        n_visual=counts,
    )
    return after, Moves(shift, source, target)


def _moved(columns: Tensor, source: Tensor, target: Tensor, shift: int) -> Tensor:
    return columns.scatter(1, target, columns.gather(1, source))[:, shift:]


def _complement(kept: Tensor, in_use: Tensor, stream: Stream, width: int) -> Tensor:
    """int64 [B, width]: slots of the visual tokens that are not kept, ascending; 0 past a row's last."""
    rows, n = stream.vis_ids.shape
    going = torch.ones(rows, n + 1, dtype=torch.bool, device=kept.device)
    going[:, :n] = stream.vis_valid
    going = going.scatter_(1, kept.masked_fill(~in_use, n), False)[:, :n]
    place = (going.cumsum(1) - 1).masked_fill(~going, width)
    slots = torch.arange(n, device=kept.device).expand(rows, -1)
    return torch.zeros(rows, width + 1, dtype=torch.int64, device=kept.device).scatter_(1, place, slots)[:, :width]


def _sorted_by(key: Tensor, values: Tensor) -> Tensor:
    """``values`` [B, W] with the smallest ``key`` first, else in their order."""
    return values.gather(1, torch.argsort(key, dim=1, stable=True))


def _after(stream: Stream, counts: tuple[int, ...]) -> tuple[tuple[int, ...], int, int]:
    """(real tokens per row, columns, columns given up in front) after an eviction down to ``counts``."""
    real = tuple(r - n + c for r, n, c in zip(stream.real, stream.n_visual, counts, strict=True))
    length = max(real)
    return real, length, stream.length - length


def _valid(real: tuple[int, ...], length: int, device: torch.device) -> Tensor | None:
    """bool [B, T] of rows that end flush right; None when all are full."""
    if all(n == length for n in real):
        return None
    return torch.arange(length, device=device) >= _column([length - n for n in real], device)


def _column(numbers: Sequence[int], device: torch.device) -> Tensor:
    """int64 [B, 1]."""
    return torch.tensor(numbers, device=device).unsqueeze(1)
