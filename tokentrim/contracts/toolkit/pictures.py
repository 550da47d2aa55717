"""Pictures of a batch as rows of their own, for methods that decide in each image, frame or tile by itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from tokentrim.contracts.sites import LayerSite
from tokentrim.contracts.toolkit.clustering import like_sizes
from tokentrim.contracts.toolkit.greedy import marked
from tokentrim.contracts.toolkit.ranking import numbered


@dataclass(frozen=True)
class Pictures:
    """The separately encoded pictures among the current visual tokens of a batch: images, frames of videos, tiles.

    Tokens without a place in any grid are a picture of their own.

    Attributes:
        rows: the row of the batch that each picture lies in, ascending.
        sizes: tokens of each picture; those of a row add up to its own.
        images: number of the image or video that each picture belongs to, in its row; -1 without a place.
        frames: number of the frame of that video; 0 in images.
        index: int64 [P, n]: number b N + i of the tokens of each picture, ascending; -1 past its size. None where
            every row is one picture.
        width: N.
        batch: B.
    """

    rows: tuple[int, ...]
    sizes: tuple[int, ...]
    images: tuple[int, ...]
    frames: tuple[int, ...]
    index: Tensor | None
    width: int
    batch: int

    @classmethod
    def of(cls, site: LayerSite) -> Pictures:
        """Those of a site with ``Need.GRID``. Reads the device once, where a row may hold more than one picture."""
        batch, width = site.ids.shape
        vision = site.shape.vision
        most = max(site.n_original or site.n_visual, default=0)  # of two pictures there may be one's number left
        single = vision is not None and not vision.varies and vision.pieces == 1 and most <= vision.n_visual
        if single or not width:
            return cls(tuple(range(batch)), site.n_visual, (0,) * batch, (0,) * batch, None, width, batch)
        grid = site.grid
        names = torch.stack([grid.image, grid.frame, grid.tile], dim=-1).cpu()
        rows: list[int] = []
        whose: list[tuple[int, int]] = []
        members: list[Tensor] = []
        for row, n in enumerate(site.n_visual):
            number = numbered(*names[row, :n].unbind(dim=1))
            for one in dict.fromkeys(number.tolist()) or (-1,):  # by their first tokens; an empty row is one picture
                mine = (number == one).nonzero().flatten()
                rows.append(row)
                whose.append((int(names[row, mine[0], 0]), int(names[row, mine[0], 1])) if len(mine) else (-1, 0))
                members.append(mine + row * width)
        images, frames = zip(*whose, strict=True)
        index = torch.nn.utils.rnn.pad_sequence(members, batch_first=True, padding_value=-1)
        return cls(tuple(rows), tuple(map(len, members)), images, frames, index.to(site.device), width, batch)

    def split(self, tensor: Tensor) -> Tensor:
        """[P, n, ...]: the part of ``tensor`` [B, N, ...] that belongs to each picture."""
        if self.index is None:
            return tensor
        return tensor.flatten(0, 1)[self.index.clamp(min=0)]

    def back(self, values: Tensor) -> Tensor:
        """[B, N]: the numbers ``values`` [P, n] of each picture's tokens, at the tokens' places; 0 in padding."""
        if self.index is None:
            return values
        spare = self.batch * self.width
        places = self.index.masked_fill(self.index < 0, spare).flatten()
        return values.new_zeros(spare + 1).scatter(0, places, values.flatten())[:spare].view(self.batch, self.width)

    def joined(self, order: Tensor) -> Tensor:
        """bool [B, N]: True at the tokens that ``order`` int64 [P, m] lists by their numbers in each picture."""
        if self.index is None:
            return marked(order, self.width)
        there = self.index.gather(1, order.clamp(min=0)).masked_fill(order < 0, -1)
        return marked(there.flatten().unsqueeze(0), self.batch * self.width).view(self.batch, self.width)

    def in_parts(self, choose: Callable[[Pictures, tuple[int, ...]], Tensor], counts: tuple[int, ...]) -> Tensor:
        """int64 [P, m]: what ``choose`` says of each picture, asked for those of :func:`like_sizes` together.

        Args:
            choose: of some pictures and their counts, int64 [pictures, n], -1 behind what a picture has.
            counts: of each picture.
        """
        index, parts = self.index, like_sizes(self.sizes)
        if len(parts) < 2 or index is None:
            return choose(self, counts)
        found = [(part, choose(self._only(part, index), tuple(counts[number] for number in part))) for part in parts]
        orders = torch.full((len(counts), max(counts, default=0)), -1, device=found[0][1].device)
        for part, order in found:
            orders[part, : order.shape[1]] = order
        return orders

    def _only(self, numbers: list[int], index: Tensor) -> Pictures:
        """Some of the pictures."""
        rows, sizes, images, frames = (
            tuple(values[number] for number in numbers) for values in (self.rows, self.sizes, self.images, self.frames)
        )
        places = index[numbers, : max(sizes, default=0)]
        return replace(self, rows=rows, sizes=sizes, images=images, frames=frames, index=places)

    def shares(self, counts: Sequence[int]) -> tuple[int, ...]:
        """Tokens that stay of each picture, ``counts`` of each row: by size, what floors leave over to later ones."""
        totals, before, found = [0] * self.batch, [0] * self.batch, list[int]()
        for row, size in zip(self.rows, self.sizes, strict=True):
            totals[row] += size
        for row, size in zip(self.rows, self.sizes, strict=True):
            begin = counts[row] * before[row] // max(totals[row], 1)
            before[row] += size
            found.append(counts[row] * before[row] // max(totals[row], 1) - begin)
        return tuple(found)
