"""Bands: attention of visual queries to their neighbourhoods, computed in blocks that leave the rest out.

In raster order the neighbours of a block of visual tokens lie in one short interval of tokens. A block attends to this
interval and to the text, in one batched call of fused attention for all blocks: time and memory grow with the number
of visual tokens, not with its square, and no map of T x T is made. It needs no compiler and runs on every device.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from tokentrim.contracts.sites import Grid
from tokentrim.counting.spans import Spans, block_of
from tokentrim.engine.tokens.stream import Stream

Host: TypeAlias = NDArray[np.int64]


def spans_of(plane: Host, row: Host, cols: int, radius: int, *, least: int | None = None) -> Spans:
    """The spans of samples that run through attention together.

    Args:
        plane: [B, N], number of the plane that each token lies in; negative in padding.
        row: [B, N], its row there, from -1 (no place) on.
        cols: tokens of a grid row, about.
        radius: a token's neighbours lie at most this many rows away in its plane.
        least: tokens that a block has at least, in whole grid rows; None = as plans assume.
    """
    n = plane.shape[1]
    block = block_of(n, cols) if least is None else block_of(n, cols, least)
    if not n:
        return Spans.over(block, [], [], n)
    lowest, highest = _reach(plane, row, radius)
    starts = range(0, n, block)
    first = [int(lowest[:, at : at + block].min()) for at in starts]
    last = [int(highest[:, at : at + block].max()) for at in starts]
    return Spans.over(block, first, last, n)


def _reach(plane: Host, row: Host, radius: int) -> tuple[Host, Host]:
    """(first, last) [B, N]: tokens between which all neighbours of each token lie; (N, -1) in padding."""
    samples, n = plane.shape
    number = np.broadcast_to(np.arange(n), plane.shape)
    # One cell per sample, plane and row, and empty ones around, so that a neighbouring row is a neighbouring cell.
    height = int(row.max()) + 2 + 2 * radius
    planes = int(plane.max()) + 1
    cell = (np.arange(samples)[:, None] * planes + plane) * height + row + 1 + radius
    used = plane >= 0
    lowest = np.full(samples * planes * height, n)
    highest = np.full(samples * planes * height, -1)
    np.minimum.at(lowest, cell[used], number[used])
    np.maximum.at(highest, cell[used], number[used])
    first, last = np.full(plane.shape, n), np.full(plane.shape, -1)
    steps = cell[used][:, None] + np.arange(-radius, radius + 1)
    first[used], last[used] = lowest[steps].min(axis=1), highest[steps].max(axis=1)
    return first, last


@dataclass(frozen=True)
class Bands:
    """Who attends to what in one prompt. B samples, K blocks of S visual tokens, W keys per block, R other tokens.

    Attributes:
        spans: of the prompt's visual tokens.
        pairs: of each sample, what :attr:`Spans.pairs` is for it alone.
        queries: int64 [B, K * S], columns of the visual tokens; T in padding.
        keys: int64 [B, K, W], columns of the other tokens, then of the block's interval.
        near: bool [B, K, S, W], which of them each query sees.
        others: int64 [B, R], columns of all tokens that are not visual; T in padding.
        before: bool [B, R, T], the columns that each of them sees.
    """

    spans: Spans
    pairs: tuple[int, ...]
    queries: Tensor
    keys: Tensor
    near: Tensor
    others: Tensor
    before: Tensor

    @classmethod
    def of(cls, radius: int, stream: Stream, grid: Grid) -> Bands:
        """The bands of a prompt whose visual tokens are all still there, in raster order."""
        length, device = stream.length, stream.vis_pos.device
        rows, n = stream.vis_pos.shape
        parts = torch.stack([grid.image, grid.frame, grid.plane, grid.row])
        # One read per prompt: the intervals are shapes.
        host: Host = torch.cat([parts.flatten(1), grid.cols.reshape(1, -1)]).numpy(force=True)
        plane = np.unique(host[:3], axis=1, return_inverse=True)[1].reshape(rows, n)
        used = np.arange(n) < np.array(stream.n_visual)[:, None]
        plane, row, cols = np.where(used, plane, -1), host[3].reshape(rows, n), int(host[4].max())
        radius = min(radius, max(int(row.max(initial=0)) + 1, cols))  # a wider one sees no more
        spans = spans_of(plane, row, cols, radius)
        alone = [
            spans_of(plane[one : one + 1, :count], row[one : one + 1, :count], cols, radius).pairs
            for one, count in enumerate(stream.n_visual)
        ]
        blocks = len(spans.first)
        spare = blocks * spans.block - n

        others, real = stream.others()
        others = others.masked_fill(~real, length)
        interval = torch.tensor(spans.first).unsqueeze(1) + torch.arange(spans.width)
        interval = interval.to(device, non_blocking=True)
        queries = F.pad(stream.vis_pos.masked_fill(~stream.vis_valid, length), (0, spare), value=length)
        visual_keys = queries[:, interval]
        keys = torch.cat([others.unsqueeze(1).expand(-1, blocks, -1), visual_keys], dim=2)

        places = torch.stack([*parts, grid.col])
        mine = F.pad(places, (0, spare), value=-2).view(5, rows, blocks, spans.block, 1)
        theirs = places[:, :, interval].unsqueeze(3)
        near = (mine[:3] == theirs[:3]).all(dim=0) & ((mine[3:] - theirs[3:]).abs() <= radius).all(dim=0)
        near &= (visual_keys < length).unsqueeze(2)
        column = queries.view(rows, blocks, spans.block, 1)
        earlier = (others[:, None, None, :] <= column) & real[:, None, None, :]
        near = torch.cat([earlier, near], dim=3)
        near[..., 0] |= ~near.any(dim=3)  # padding sees something, so that no row of weights is empty

        before = torch.arange(length, device=device) <= others.unsqueeze(2)
        if stream.valid is not None:
            before &= stream.valid.unsqueeze(1)
        before[..., 0] |= ~before.any(dim=2)
        return cls(spans, tuple(alone), queries, keys.clamp(max=length - 1), near, others, before)

    def attend(self, query: Tensor, key: Tensor, value: Tensor, scaling: float | None) -> Tensor:
        """[B, T, H, D]: the attention of every token; zero in padding.

        Args:
            query: [B, H, T, D].
            key: [B, H_kv, T, D].
            value: [B, H_kv, T, D].
            scaling: of the scores; None = 1 / sqrt(D).
        """
        rows, heads, length, width = query.shape
        blocks, block = self.keys.shape[1], self.spans.block
        sample = torch.arange(rows, device=query.device).unsqueeze(1)

        def blockwise(states: Tensor, columns: Tensor) -> Tensor:
            picked = states.transpose(1, 2)[sample, columns.clamp(max=length - 1)]
            return picked.view(rows * blocks, -1, *picked.shape[2:]).transpose(1, 2)

        out = self._of_others(query, key, value, scaling)
        mixed = F.scaled_dot_product_attention(
            blockwise(query, self.queries),
            _per_head(blockwise(key, self.keys.flatten(1)), heads),
            _per_head(blockwise(value, self.keys.flatten(1)), heads),
            attn_mask=self.near.flatten(0, 1).unsqueeze(1),
            scale=scaling,
        )
        out[sample, self.queries] = mixed.transpose(1, 2).reshape(rows, blocks * block, heads, width)
        return out[:, :length]

    def attend_others(self, query: Tensor, key: Tensor, value: Tensor, scaling: float | None) -> Tensor:
        """[B, T, H, D]: the attention of the tokens that are not visual; zero elsewhere. Arguments as above."""
        return self._of_others(query, key, value, scaling)[:, :-1]

    def _of_others(self, query: Tensor, key: Tensor, value: Tensor, scaling: float | None) -> Tensor:
        """[B, T + 1, H, D]: the same, with a spare column that takes what padded slots write."""
        rows, heads, length, width = query.shape
        sample = torch.arange(rows, device=query.device).unsqueeze(1)
        mixed = F.scaled_dot_product_attention(
            query.transpose(1, 2)[sample, self.others.clamp(max=length - 1)].transpose(1, 2),
            _per_head(key, heads),
            _per_head(value, heads),
            attn_mask=self.before.unsqueeze(1),
            scale=scaling,
        )
        out = mixed.new_zeros(rows, length + 1, heads, width)  # of the dtype that autocast may have chosen
        out[sample, self.others] = mixed.transpose(1, 2)
        return out


def _per_head(states: Tensor, heads: int) -> Tensor:
    """[B, H, T, D] of [B, H_kv, T, D]: each key/value head once for every query head that reads it."""
    group = heads // states.shape[1]
    return states if group == 1 else states.repeat_interleave(group, dim=1)
