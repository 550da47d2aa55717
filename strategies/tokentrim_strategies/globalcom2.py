"""``globalcom2``: the thumbnail of a tiled image says how much of each tile stays, and helps to say what."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Final

from pydantic import Field

from tokentrim import LayerSite, ModelShape, Need, Schedule, Selection, SpatialSelector, Stage
from tokentrim_strategies._shares import KeepingShares

if TYPE_CHECKING:
    from torch import Tensor

    from tokentrim import Pictures

_TEMPERATURE: Final = 10.0


class GlobalCom2(KeepingShares, SpatialSelector):
    """Let the thumbnail of a tiled image decide how many tokens of each tile stay, at boundary 0.

    With ``a_j = (1/H) sum_h q_h,CLS . k_h,j / sqrt(d)``, the products of [CLS] with the patches in block ``block`` of
    the vision tower, **before** the softmax (of the mean query where the tower has no [CLS]):

    - of the thumbnail's P tokens the ``floor(R P)`` with the highest a_j stay;
    - the thumbnail is cut into as many cells as there are tiles; with m_t the sum of a_j over the cell of tile t and p
      the softmax of ``m_t / 10`` over the tiles, tile t gets the share ``r_t = min(1, R (1 + p_t - mean p))``;
    - the thumbnail's a is resized (bilinear) to the plane of the tiles, its padding cut off: g_j. Of the n tokens of a
      tile the ``floor(n r_t)`` with the highest ``a_j / |a| + g_j / |g|`` stay, norms over the tile.

    Follows the released code: logits, of the last block. They may be negative, and their sums over a hundred patches
    are large against 10, so that one tile may take the whole bonus. Shares are rounded down, and where padding makes
    tiles unequal they need not add up to R. ``total: released`` leaves it at that; by default all shares are stretched
    by one factor, until as many tokens stay as were asked for (ours).

    The code also puts a kept patch at its number *among the unpadded patches* of its tile, which scrambles the order of
    every image that was padded. That is not copied: tokens stay in the order of the raster. Line ends stay and are not
    counted, here as there. **A plain image is a thumbnail without tiles** (ours: the code leaves LLaVA-1.5 whole): its
    best tokens by a_j stay, and so it is with frames of videos. Each of several images has the same share R.

    When it fails: it never reads the question. Sinks of the tower decide where the budget goes. Behind another part
    that prunes at the input it sees only what that left of the thumbnail.

    Cost: the products of one query in one block, O(P d), a P x P matrix for each tile, and a read of the device.

    Parameters: ``keep_ratio`` (share kept, R; the code's default is 0.25, too) or ``keep_count`` (tokens kept per
    prompt), ``block`` (block of the tower, negative = from the end), ``total``.

    ```bibtex
    @article{liu2025globalcom2,
      title={Global Compression Commander: Plug-and-Play Inference Acceleration for High-Resolution Large
             Vision-Language Models},
      author={Liu, Xuyang and Wang, Ziming and Chen, Junjie and Han, Yuhang and Wang, Yingyao and Yuan, Jiale and
              Song, Jun and Zhang, Linfeng and Huang, Siteng and Chen, Honggang},
      journal={arXiv preprint arXiv:2501.05179},
      year={2025},
      note={arXiv:2501.05179}
    }
    ```
    """

    name: ClassVar[str] = "globalcom2"
    stage: ClassVar[Stage] = "input"
    needs: ClassVar[frozenset[Need]] = frozenset({Need.VISION_LOGITS, Need.GRID})

    block: int = Field(default=-1, description="block of the vision tower whose products count, -1 = the last")

    def wants_vision_blocks(self, features: int) -> tuple[int, ...]:
        """The one block."""
        return (self.block,)

    def schedule(self, shape: ModelShape, n_visual: int) -> Schedule:
        """As many as asked for; as released at most twice as many, if large tiles take the bonus."""
        if self.total == "exact":
            return super().schedule(shape, n_visual)
        return Schedule.of({0: min(n_visual, 2 * self.count_of(n_visual) + 1)})

    def shares(self, site: LayerSite, pictures: Pictures, count: Tensor) -> tuple[Tensor, Tensor]:
        """(float [P, n], what tokens of each thumbnail and tile are ranked by; float64 [P], the share of each)."""
        import torch

        from tokentrim import within

        scores = pictures.split(site.vision_logits[:, 0].float().mean(dim=1))
        real = within(pictures.sizes, scores.shape[1], site.device)
        scores = scores.masked_fill(~real, 0.0)
        ratio = [self.share_of(int(count[row]), site.n_visual[row]) for row in pictures.rows]
        share = torch.tensor(ratio, dtype=torch.float64, device=site.device)
        names = list(zip(pictures.rows, pictures.images, pictures.frames, strict=True))
        if len(set(names)) == len(names):  # nothing is tiled
            return scores, share
        first = torch.tensor([names.index(name) for name in names], device=site.device)  # the thumbnail of each
        same = first.unsqueeze(1) == first
        tile, row, col, rows, cols = (
            pictures.split(part)
            for part in (site.grid.tile, site.grid.row, site.grid.col, site.grid.rows, site.grid.cols)
        )
        number = tile[:, 0]
        tiled = number > 0

        def most(values: Tensor) -> Tensor:
            return values.expand_as(same).masked_fill(~same, 0).amax(dim=1, keepdim=True)

        across = most(tile.masked_fill((row != 0) | ~real, 0).amax(dim=1)).clamp(min=1)  # tiles beside each other
        down = (most(number) // across).clamp(min=1)
        cell_row = torch.minimum(row[first] // (rows[first] // down).clamp(min=1), down - 1)
        cell_col = torch.minimum(col[first] // (cols[first] // across).clamp(min=1), across - 1)
        mine = real[first] & (cell_row * across + cell_col + 1 == number.unsqueeze(1))
        mass = scores[first].masked_fill(~mine, 0.0).sum(dim=1, dtype=torch.float64)
        raised = self.raised(share, mass / _TEMPERATURE, same & tiled)

        tall = _between(row, rows, row[first], rows[first])
        wide = _between(col, cols, col[first], cols[first])
        guide = (tall * wide * scores[first].unsqueeze(1)).sum(dim=2).masked_fill(~real, 0.0)
        both = scores / _norm(scores) + guide / _norm(guide)
        return torch.where(tiled.unsqueeze(1), both, scores), torch.where(tiled, raised, share)

    def select(self, site: LayerSite, count: Tensor) -> Selection:
        """The best of every thumbnail and tile, by its share."""
        import torch

        from tokentrim import Pictures, ranks_within, within

        pictures = Pictures.of(site)
        scores, share = self.shares(site, pictures, count)
        real = within(pictures.sizes, scores.shape[1], site.device)
        rank = ranks_within(scores, (~real).long())
        site.note(pictures.back(scores), "ranked in each thumbnail and tile, which have shares of their own")
        room = (share * torch.tensor(pictures.sizes, device=site.device)).unsqueeze(1)
        tiers = (rank >= room.floor()).long() + 1
        part = -(rank + 1) / room.clamp(min=1e-9)  # how far shares must be stretched for a token to stay
        if self.total == "exact":
            tiers = torch.ones_like(tiers)
        return self.settled(site, pictures.back(part), pictures.back(tiers), count)


def _between(place: Tensor, size: Tensor, at: Tensor, of: Tensor) -> Tensor:
    """float32 [P, n, n]: weight of line ``at`` of ``of`` in line ``place`` of ``size``, interpolated linearly."""
    middle = ((place + 0.5) * of[:, :1] / size - 0.5).clamp(min=0).minimum(of[:, :1] - 1)
    return (1 - (middle.unsqueeze(2) - at.unsqueeze(1)).abs()).clamp(min=0)


def _norm(values: Tensor) -> Tensor:
    """float32 [P, 1]: length of each row; doubles add up alike in any batch."""
    import torch

    return values.square().sum(dim=1, keepdim=True, dtype=torch.float64).sqrt().clamp(min=1e-12).float()
