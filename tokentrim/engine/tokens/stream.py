"""Stream: which tokens are in the sequence right now, per row, and how to take some of them out.

One Stream describes the columns that a run of decoder layers sees (prefill), and later the columns that these layers
hold in their caches (decode). All planning is done with host integers that are read once per prompt; tensors hold
only what the device needs.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from tokentrim.contracts.selection import Selection


@dataclass(frozen=True)
class Sight:
    """Whom the tokens of a layer see, where that is not simply all that is before them. K columns.

    Attributes:
        mutual: int64 [B, K], a number for each run of tokens that see each other in both directions, -1 elsewhere; None
            where there are none.
        window: how many tokens back they see, themselves among them; None = to the beginning.
        places: int64 [B, K], what that is measured by: columns of the whole prompt, and of all that followed.
    """

    mutual: Tensor | None
    window: int | None
    places: Tensor

    def visible(self, columns: Tensor) -> Tensor:
        """bool [B, R, K]: whom the tokens at ``columns`` int64 [B, R] see, padding not looked at."""
        seen = columns.unsqueeze(2) >= torch.arange(self.places.shape[1], device=columns.device)
        if self.mutual is not None:
            own = self.mutual.gather(1, columns).unsqueeze(2)
            seen = seen | ((own == self.mutual.unsqueeze(1)) & (own >= 0))
        if self.window is not None:
            seen = seen & (self.places.unsqueeze(1) > self.places.gather(1, columns).unsqueeze(2) - self.window)
        return seen


@dataclass(frozen=True)
class Stream:
    """Columns of one stretch of layers. B rows, T columns, N = visual tokens of the fullest row.

    Attributes:
        length: T.
        valid: bool [B, T], False in padding; None when nothing is padded.
        real: real (unpadded) tokens per row.
        columns: int64 [B, T]: the column of the prompt that each current column was.
        vis_pos: int64 [B, N]: current column of each visual token (0 in padding).
        vis_ids: int64 [B, N]: raster number of each visual token (-1 in padding); ascending with the padding behind,
            but in the order of leaving with the padding in front where a cache layer's order of leaving is known, and
            in the order of the columns where a selection moved some behind the others.
        n_visual: visual tokens per row.
        dropped: int64 [B]: tokens of the row that were gone by the end of prefill, padding not counted; None when none.
        ends_visual: rows of a whole prompt whose last real token is visual (not kept up to date by :meth:`take`).
        ends_padded: rows of a whole prompt whose last column is padding (likewise).
        structure: bool [B, T_prompt], placeholders of the prompt that are no visual tokens (line ends), which always
            stay and are no text either; None where there are none.
        n_structure: their number per row; empty where there are none.
        flush: whether every row is known to end in the last column, padding in front.
        mutual: int64 [B, T_prompt], a number for each run of the prompt's tokens that see each other in both
            directions, -1 at those that see what is before them alone; None where all do.
    """

    length: int
    valid: Tensor | None
    real: tuple[int, ...]
    columns: Tensor
    vis_pos: Tensor
    vis_ids: Tensor
    n_visual: tuple[int, ...]
    dropped: Tensor | None = None
    ends_visual: tuple[int, ...] = ()
    ends_padded: tuple[int, ...] = ()
    structure: Tensor | None = None
    n_structure: tuple[int, ...] = ()
    flush: bool = False
    mutual: Tensor | None = None
    _on: dict[torch.device, Stream] = field(
        init=False, default_factory=dict[torch.device, "Stream"], repr=False, compare=False
    )

    @property
    def device(self) -> torch.device:
        """Where its tensors are."""
        return self.vis_pos.device

    def on(self, device: torch.device) -> Stream:
        """The same stream for layers that run on ``device``: one object per device, whichever of them is asked."""
        if device == self.device:
            return self
        self._on.setdefault(self.device, self)
        if device not in self._on:
            own = {one.name: getattr(self, one.name) for one in fields(self) if one.init}
            there = Stream(**{name: moved(value, device) for name, value in own.items()})
            object.__setattr__(there, "_on", self._on)
            self._on[device] = there
        return self._on[device]

    @property
    def rows(self) -> int:
        """Rows of the batch."""
        return len(self.real)

    @property
    def vis_valid(self) -> Tensor:
        """bool [B, N]: False in padding."""
        return self.vis_ids >= 0

    @classmethod
    def of_prompt(cls, visual: Tensor, attention_mask: Tensor | None, structure: Tensor | None = None) -> Stream:
        """The whole prompt.

        Args:
            visual: bool [B, T].
            attention_mask: bool or int [B, T], or None when nothing is padded.
            structure: bool [B, T], placeholders that are no visual tokens; None where there are none.
        """
        rows, length = visual.shape
        device = visual.device
        mask = None if attention_mask is None else attention_mask.to(torch.bool)
        if mask is not None:
            visual = visual & mask
        places = torch.arange(length, device=device)
        if mask is None:
            all_real = visual.new_full((rows,), True).long()
            sums = [visual.sum(1), all_real * length, visual[:, -1].long(), all_real - 1]
        else:
            last = (mask * places).amax(dim=1, keepdim=True)
            sums = [visual.sum(1), mask.sum(1), visual.gather(1, last)[:, 0].long(), (~mask[:, -1]).long()]
        sums.append(visual.new_zeros(rows, dtype=torch.long) if structure is None else structure.sum(1))
        # The one read of the device per prompt: every later shape follows from these integers.
        n_visual, real, ends, pads, n_structure = (tuple(map(int, column)) for column in torch.stack(sums).tolist())
        valid = None if all(n == length for n in real) else mask
        width = max(n_visual, default=0)
        order = torch.argsort((~visual).to(torch.uint8), dim=1, stable=True)[:, :width]
        ids = torch.arange(width, device=device).expand(rows, width)
        if any(n != width for n in n_visual):
            limit = torch.tensor(n_visual, device=device).unsqueeze(1)
            beyond = ids >= limit
            order, ids = order.masked_fill(beyond, 0), ids.masked_fill(beyond, -1)
        columns = places.expand(rows, length)
        ends_visual, ends_padded = (tuple(row for row, yes in enumerate(rows) if yes) for rows in (ends, pads))
        stream = cls(
            length, valid, real, columns, order, ids, n_visual,
            ends_visual=ends_visual, ends_padded=ends_padded, flush=valid is None,
        )  # fmt: skip
        return stream if structure is None else replace(stream, structure=structure, n_structure=n_structure)

    def visual_mask(self, columns: int | None = None) -> Tensor:
        """bool [B, T], or [B, columns]: where the visual tokens are; columns behind the stream's are new text."""
        width = self.length if columns is None else columns
        marks = torch.zeros(self.rows, width + 1, dtype=torch.bool, device=self.vis_pos.device)
        return marks.scatter(1, self.vis_pos.masked_fill(~self.vis_valid, width), True)[:, :width]

    def places(self, spare: int) -> Tensor:
        """int64 [B, T]: the column of the prompt that each current column was; ``spare`` in padding."""
        return self.columns if self.valid is None else self.columns.masked_fill(~self.valid, spare)

    def sight(self, window: int | None) -> Sight | None:
        """Whom its tokens see in a layer with a window; None where simply all that is before them."""
        if self.mutual is None and window is None:
            return None
        return Sight(None if self.mutual is None else self.mutual.gather(1, self.columns), window, self.columns)

    def last_visual(self) -> Tensor:
        """int64 [B, 1]: the column of each row's last visual token; -1 where there is none."""
        return self.vis_pos.masked_fill(~self.vis_valid, -1).amax(dim=1, keepdim=True)

    def last_columns(self) -> Tensor | None:
        """int64 [B]: the last real column of each row; None when that is column T-1 everywhere (no padding)."""
        if self.valid is None:
            return None
        places = torch.arange(self.length, device=self.valid.device)
        return (self.valid * places).amax(dim=1)

    def text(self) -> tuple[Tensor, Tensor]:
        """(columns int64 [B, T_text], valid bool [B, T_text]) of the real text tokens, in order."""
        return self._not_visual(with_structure=False)

    def others(self) -> tuple[Tensor, Tensor]:
        """The same of all real tokens that are not visual: text and structure."""
        return self._not_visual(with_structure=True)

    def _not_visual(self, *, with_structure: bool) -> tuple[Tensor, Tensor]:
        here = ~self.visual_mask()
        if self.valid is not None:
            here = here & self.valid
        counts = [real - n for real, n in zip(self.real, self.n_visual, strict=True)]
        if self.structure is not None and not with_structure:
            here = here & ~self.structure.gather(1, self.columns)
            counts = [count - n for count, n in zip(counts, self.n_structure, strict=True)]
        width = max(counts)
        order = torch.argsort((~here).to(torch.uint8), dim=1, stable=True)[:, :width]
        limit = torch.tensor(counts, device=order.device).unsqueeze(1)
        return order, torch.arange(width, device=order.device) < limit

    def take(self, selection: Selection) -> tuple[Stream, Tensor]:
        """The stream after a selection, and int64 [B, T_new]: the current column of each new column.

        Order is kept, so causality in the shorter sequence is causality in the longer one; only what the selection
        puts behind the others moves. Rows end flush right;
        the columns in front of a shorter row are padding. Padding of the prompt is dropped as well where possible.
        """
        device, rows = self.vis_pos.device, self.rows
        kept = selection.kept
        width = max(selection.counts, default=0)
        kept = kept[:, :width]
        in_use = kept >= 0
        safe = kept.clamp(min=0)
        # A spare column T takes the writes of padded slots.
        going = self.vis_pos.masked_fill(~self.vis_valid, self.length)
        stays = torch.ones(rows, self.length + 1, dtype=torch.bool, device=device)
        if self.valid is not None:
            stays[:, : self.length] = self.valid
        stays.scatter_(1, going, False)
        kept_pos = self.vis_pos.gather(1, safe)
        stays.scatter_(1, kept_pos.masked_fill(~in_use, self.length), True)
        stays = stays[:, : self.length]

        real = tuple(r - n + c for r, n, c in zip(self.real, self.n_visual, selection.counts, strict=True))
        length = max(real)
        pads = torch.tensor([length - r for r in real], device=device).unsqueeze(1)
        source = torch.arange(self.length, device=device).expand(rows, self.length)
        places = stays.cumsum(1) - 1
        if any(selection.behind or ()):
            places = self._moved(stays, source, kept_pos.masked_fill(~in_use, self.length), selection)
        places = places + pads
        order = torch.zeros(rows, length + 1, dtype=torch.int64, device=device)
        order = order.scatter_(1, places.masked_fill(~stays, length), source)[:, :length]
        ragged = any(r != length for r in real)
        valid = (torch.arange(length, device=device) >= pads) if ragged else None
        gone = torch.tensor([n - c for n, c in zip(self.n_visual, selection.counts, strict=True)], device=device)
        after = Stream(
            length=length,
            valid=valid,
            real=real,
            columns=self.columns.gather(1, order),
            vis_pos=places.gather(1, kept_pos).masked_fill(~in_use, 0),
            vis_ids=self.vis_ids.gather(1, safe).masked_fill(~in_use, -1),
            n_visual=selection.counts,
            dropped=gone if self.dropped is None else self.dropped + gone,
            structure=self.structure,
            n_structure=self.n_structure,
            flush=True,
            mutual=self.mutual,
        )
        return after, order

    def _moved(self, stays: Tensor, source: Tensor, kept_pos: Tensor, selection: Selection) -> Tensor:
        """int64 [B, T]: the place of every column that stays, with what goes behind the row's last visual column there.

        Args:
            stays: bool [B, T].
            source: int64 [B, T], the columns' numbers.
            kept_pos: int64 [B, n], column of each kept token; T in padding.
            selection: says how many of them move.
        """
        rows, width = kept_pos.shape
        counts, n_moved = torch.tensor([selection.counts, selection.behind], device=source.device).unsqueeze(2)
        rank = torch.arange(width, device=source.device) - counts + n_moved  # 0, 1, ... of those that move
        moving = kept_pos.masked_fill(rank < 0, self.length)
        spare = torch.zeros(rows, 1, dtype=torch.bool, device=source.device)
        fixed = torch.cat([stays, spare], dim=1).scatter(1, moving, False)[:, :-1].cumsum(1)
        last = self.last_visual()
        places = F.pad(fixed - 1 + n_moved * (source > last), (0, 1))
        return places.scatter(1, moving, fixed.gather(1, last.clamp(min=0)) + rank)[:, :-1]

    def select_rows(self, index: Tensor) -> Stream:
        """The stream of a batch whose row r is this stream's row ``index[r]`` (beam search, batch selection)."""
        unlike = any(len(set(counts)) > 1 for counts in (self.n_visual, self.real, self.n_structure))
        host = index.tolist() if unlike else [0] * len(index)
        index = index.to(self.columns.device)
        return Stream(
            length=self.length,
            valid=None if self.valid is None else self.valid.index_select(0, index),
            real=tuple(self.real[i] for i in host),
            columns=self.columns.index_select(0, index),
            vis_pos=self.vis_pos.index_select(0, index),
            vis_ids=self.vis_ids.index_select(0, index),
            n_visual=tuple(self.n_visual[i] for i in host),
            dropped=None if self.dropped is None else self.dropped.index_select(0, index),
            structure=None if self.structure is None else self.structure.index_select(0, index),
            n_structure=tuple(self.n_structure[i] for i in host) if self.structure is not None else (),
            flush=self.flush,
            mutual=None if self.mutual is None else self.mutual.index_select(0, index),
        )


def moved(what: Any, device: torch.device) -> Any:
    """``what`` with the tensors in it on ``device``; what is there, and what is no tensor, stays the same object."""
    if isinstance(what, tuple):
        parts: tuple[Any, ...] = what
        return tuple(moved(part, device) for part in parts)
    return what.to(device) if isinstance(what, Tensor) else what


def gather_columns(tensor: Tensor, order: Tensor) -> Tensor:
    """Columns ``order`` [B, T_new] of ``tensor`` [B or 1, T, ...]."""
    if tensor.shape[0] != order.shape[0]:
        tensor = tensor.expand(order.shape[0], *tensor.shape[1:])
    index = order.reshape(*order.shape, *([1] * (tensor.dim() - 2))).expand(-1, -1, *tensor.shape[2:])
    return tensor.gather(1, index)


def spread(tensor: Tensor, columns: Tensor, length: int, *axes: int) -> Tensor:
    """``tensor`` [B, ...] with entry i along ``axes`` at place ``columns[:, i]`` of ``length``, and zeros elsewhere.

    Args:
        tensor: as long along ``axes`` as ``columns``.
        columns: int64 [B, T]; what goes to the place ``length`` is left out.
        length: of the result.
        axes: along which entries move.
    """
    for axis in axes:
        shape = list(tensor.shape)
        shape[axis] = length + 1
        index = columns.reshape(len(columns), *(-1 if a == axis else 1 for a in range(1, tensor.dim())))
        full = tensor.new_zeros(shape).scatter(axis, index.expand_as(tensor), tensor)
        tensor = full.narrow(axis, 0, length)
    return tensor


def place(hidden: Tensor, features: Tensor, stream: Stream) -> Tensor:
    """``hidden`` [B, T, D] with ``features`` [B, N, D] at the visual columns of ``stream``."""
    spare = torch.cat([hidden, hidden[:, :1]], dim=1)
    where = stream.vis_pos.masked_fill(~stream.vis_valid, stream.length).unsqueeze(-1).expand_as(features)
    return spare.scatter(1, where, features)[:, : stream.length]


def merge_features(features: Tensor, selection: Selection) -> Tensor:
    """Weighted mean (or sum, as the selection says) of each kept token and the tokens merged into it.

    Args:
        features: [B, N, D], the current visual tokens.
        selection: a merging selection.

    Returns:
        [B, n, D]: one vector per slot of ``selection.kept``.
    """
    target = selection.target
    if target is None:
        return features.gather(1, selection.kept.clamp(min=0).unsqueeze(-1).expand(-1, -1, features.shape[-1]))
    slots = max(selection.counts, default=0)
    weight = torch.ones_like(target, dtype=torch.float32) if selection.weight is None else selection.weight.float()
    weight = weight.masked_fill(target < 0, 0.0)
    place = target.masked_fill(target < 0, slots)  # a spare slot takes what is simply dropped
    total = weight.new_zeros(target.shape[0], slots + 1).scatter_add(1, place, weight)
    mixed = weight.new_zeros(target.shape[0], slots + 1, features.shape[-1])
    mixed = mixed.scatter_add(1, place.unsqueeze(-1).expand_as(features), features.float() * weight.unsqueeze(-1))
    mixed = mixed[:, :slots]
    if selection.reduce == "mean":
        mixed = mixed / total[:, :slots].clamp(min=torch.finfo(torch.float32).tiny).unsqueeze(-1)
    return mixed.to(features.dtype)
