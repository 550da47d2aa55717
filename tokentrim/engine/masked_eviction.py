"""Temporal choices inside compiled steps: entries are masked where they stand, and leave when buffers change anyway.

Sizes must not change from step to step in compiled code, so a temporal part that ranks anew at each step only marks
what it lets go. The physical eviction is made up for later, all at once: when a step cannot run compiled, when rows
change places, or when half of the buffers is masked. A part whose entries may return masks them for the step alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from tokentrim.contracts.selection import Selection
from tokentrim.contracts.sites import Need
from tokentrim.contracts.strategy import Temporal, TemporalScorer
from tokentrim.counting.shape import ModelShape
from tokentrim.engine.deciding import checked_scores
from tokentrim.engine.seams import attention_rows
from tokentrim.engine.tokens.cache import TrimLayer
from tokentrim.engine.tokens.eviction import evict
from tokentrim.errors import StrategyError, complaint


def chooses_under_mask(part: Temporal | None, shape: ModelShape) -> bool:
    """Whether a part can choose in compiled code: by rows of the layer since the prompt's end, to known counts."""
    return (
        isinstance(part, TemporalScorer)
        and part.count_is_static
        and part.needed() <= {Need.LAST_ROW, Need.ACCUMULATED}
        and all(part.row_layer(layer, shape) == layer for layer in range(shape.n_layers))
    )


class SeenStep:
    """What a temporal scorer sees of a compiled step: of its :class:`~tokentrim.StepSite`, what it declared.

    Anything else that it reads is an error.

    Attributes:
        last_row: float [B, H, N]; entries that are gone have weight 0.
        accumulated: float [B, H, N], where it was asked for.
        ids: int64 [B, N], -1 for entries that are gone.
        valid: bool [B, N].
    """

    def __init__(self, last_row: Tensor, accumulated: Tensor | None, ids: Tensor, valid: Tensor) -> None:
        self.last_row, self.ids, self.valid, self.device = last_row, ids, valid, ids.device
        if accumulated is not None:
            self.accumulated = accumulated

    def __getattr__(self, name: str) -> Any:
        raise StrategyError(
            complaint("a site in a compiled step", "be read for what was declared, ids, valid and device alone", name,
                      "leave compile=True out")
        )  # fmt: skip


class MaskedEviction:
    """What is masked in every layer's buffers. L layers, B rows, C columns and N visual entries of a layer.

    Attributes:
        part: whose scores decide.
        alive: per layer bool [B, C + 1], False where an entry was let go for good; the last column stands for padding.
        columns: per layer int64 [B, N], where the visual entries stand.
        ids: per layer int64 [B, N], their raster numbers, -1 in padding.
        sums: per layer float [B, H, N], accumulated rows, which are the layers' own; none where nobody asks.
        allowed: int64 [L, B], visual entries that may stay, or be seen, at this step.
        now: int64 [L, B, N of the fullest layer], raster numbers of these, -1 elsewhere.
        wrong: bool [L], whether scores of this step held NaN.
    """

    def __init__(self, part: TemporalScorer, layers: Sequence[TrimLayer]) -> None:
        self.part = part
        self._streams = [layer.held_stream for layer in layers]
        self.alive: list[Tensor] = []
        self.columns: list[Tensor] = []
        self.ids: list[Tensor] = []
        self.sums: list[Tensor] = []
        for layer in layers:
            if Need.ACCUMULATED in layer.rows:
                self.sums.append(layer.rows[Need.ACCUMULATED].clone())
                layer.rows[Need.ACCUMULATED] = self.sums[-1]
            stream, capacity = layer.held_stream, layer.buffers[0].shape[2]
            self.alive.append(stream.vis_pos.new_ones(stream.rows, capacity + 1, dtype=torch.bool))
            self.columns.append((stream.vis_pos + layer.given_up).masked_fill(~stream.vis_valid, capacity))
            self.ids.append(stream.vis_ids.clone())
        width = max(ids.shape[1] for ids in self.ids)
        self.allowed = self.ids[0].new_zeros(len(layers), len(self.ids[0]))
        self.now = self.ids[0].new_full((len(layers), len(self.ids[0]), width), -1)
        self.wrong = self.ids[0].new_zeros(len(layers), dtype=torch.bool)

    @property
    def tensors(self) -> list[Tensor]:
        """All that compiled code reads and writes."""
        return [*self.alive, *self.columns, *self.ids, *self.sums, self.allowed, self.now, self.wrong]

    def describes(self, layers: Sequence[TrimLayer]) -> bool:
        """Whether the layers' entries still stand where they stood: steps that ran as usual move and add to them."""
        stand = all(layer.stream is stream for layer, stream in zip(layers, self._streams, strict=True))
        pairs = zip(layers, self.sums, strict=False)
        return stand and all(layer.rows.get(Need.ACCUMULATED) is total for layer, total in pairs)

    def note(self, index: int, layer: TrimLayer, counts: tuple[int, ...]) -> None:
        """A compiled step has let all but ``counts`` of a layer's entries go."""
        layer.evict_later(counts, partial(self._settle, index, layer))

    def _settle(self, index: int, layer: TrimLayer, counts: tuple[int, ...]) -> None:
        """Evict what is masked."""
        there = self.alive[index].gather(1, self.columns[index]) & (self.ids[index] >= 0)
        selection = Selection.from_mask(there, counts)
        layer.evict(*evict(layer.held_stream, selection))
        layer.keep_rows(selection)


def in_use(state: Tensor, layer: int, key: Tensor, eviction: MaskedEviction | None) -> Tensor:
    """bool [B, C]: columns that the query of a step may see.

    Args:
        state: int64 [L, 1 + B], per layer the newest column and each row's first.
        layer: number of the decoder layer.
        key: [B, H_kv, C, head_dim].
        eviction: what is masked besides, if anything.
    """
    columns = torch.arange(key.shape[2], device=key.device)
    seen = (columns <= state[layer, 0]) & (columns >= state[layer, 1:].unsqueeze(1))
    return seen if eviction is None else seen & eviction.alive[layer][:, :-1]


def attend_and_evict(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    state: Tensor,
    eviction: MaskedEviction,
    scaling: float,
) -> Tensor:
    """[B, 1, H, head_dim]: one step of one layer; reads the row, lets or leaves out the lowest, attends to the rest."""
    layer: Any = module.layer_idx
    alive, columns, ids = eviction.alive[layer], eviction.columns[layer], eviction.ids[layer]
    seen = in_use(state, layer, key, eviction)
    weights = attention_rows.attention_rows(query, key, scaling, seen[:, None, None])
    row = functional.pad(weights, (0, 1))[:, :, 0]
    row = row.gather(2, columns.unsqueeze(1).expand(-1, row.shape[1], -1))
    there = alive.gather(1, columns) & (ids >= 0)
    sums = None
    if eviction.sums:
        sums = eviction.sums[layer].add_(row).clone()
    site: Any = SeenStep(row, sums, ids.masked_fill(~there, -1), there.clone())
    scores = checked_scores(eviction.part.score(site), ids.shape, ids.device)
    eviction.wrong[layer] = (scores.isnan() & there).any()
    order = torch.argsort(scores, dim=-1, descending=True, stable=True)
    # Ranks among what is there: whatever the score of an entry that is gone, it takes no place.
    places = there.gather(1, order).cumsum(1) - 1
    rank = torch.zeros_like(order).scatter(1, order, places)
    stays = (rank < eviction.allowed[layer].unsqueeze(1)) & there
    eviction.now[layer, :, : ids.shape[1]] = ids.masked_fill(~stays, -1)
    chosen = alive.scatter(1, columns, stays)
    if eviction.part.evicts():
        alive.copy_(chosen)
    left = seen & chosen[:, :-1]
    return attention_rows.attend(weights.masked_fill(~left[:, None, None], 0.0), value, query)[0]
