"""``hired``: a budget for a tiled image, half to its thumbnail, the rest to the tiles where something is."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from tokentrim import LayerSite, Need, Selection, SpatialSelector, Stage
from tokentrim_strategies._keeping import Share
from tokentrim_strategies._shares import KeepingShares

if TYPE_CHECKING:
    from torch import Tensor


class HiRED(KeepingShares, SpatialSelector):
    """Share out T tokens among thumbnail and tiles; in each keep what [CLS] attends to most, and drop the rest.

    With ``a_j = sum_h A[h, CLS, j]`` in block ``block`` of the vision tower, by default the one whose output becomes
    the features, and ``c_j`` the same in the first block, of an image with a thumbnail of n tokens and K tiles:

    - the thumbnail keeps ``min(floor(alpha T), n)`` tokens, R are left;
    - of the thumbnail's ``S = floor((1 - alpha) n)`` tokens with the highest c, ``s_k`` lie in the k-th of K strips of
      equal height; tile k keeps ``floor(R s_k / S)``;
    - in thumbnail and tiles the tokens with the highest a stay.

    An image without tiles, as all of LLaVA-1.5's, keeps its T tokens with the highest a: there it is FasterVLM. These
    parts are rounded down in floating point, as in the code: 60 of 86, times 86, may be 59.

    Follows the released code in what it calls the area of a tile: a strip across the whole thumbnail, whatever the grid
    of the tiles (of 2 x 2 tiles the second has the second quarter from above). Floors, and tiles that are given more
    than they have, leave tokens over: ``total: released`` does without them, as the code does; ``exact`` (ours) gives
    them to the most attended tokens that are left, wherever they lie. The code swaps height and width when it lays
    out the tiles, so that grids that are not square lose chosen tokens; here they do not (ours). It removes
    line ends, which stay here. T is a share of the tokens that there are, padding cut off; the code counts before. It
    numbers positions after pruning (``positions: renumber``; our default keeps them). Of several images, and frames,
    each has a part of the budget in proportion to its tokens (ours). Where the tower has no [CLS], a and c are the
    attention that a token receives from all patches (ours).

    When it fails: it never reads the question, and high-norm background collects attention. The first block looks at
    contrast more than at content, and strips cut objects apart.

    Cost: one attention row per head in two blocks of the tower, O(P d), and a few sorts.

    Parameters: ``keep_ratio`` (share kept, 0.2 in the paper) or ``keep_count`` (tokens kept per prompt, T), ``alpha``
    (share of them for the thumbnail), ``total``, ``block`` (negative = from the end; None = the features').

    ```bibtex
    @inproceedings{arif2025hired,
      title={{HiRED}: Attention-Guided Token Dropping for Efficient Inference of High-Resolution Vision-Language
             Models},
      author={Arif, Kazi Hasan Ibn and Yoon, JinYi and Nikolopoulos, Dimitrios S. and Vandierendonck, Hans and
              John, Deepu and Ji, Bo},
      booktitle={Proceedings of the AAAI Conference on Artificial Intelligence},
      volume={39}, pages={1773--1781},
      year={2025},
      note={arXiv:2408.10945}
    }
    ```
    """

    name: ClassVar[str] = "hired"
    stage: ClassVar[Stage] = "input"
    needs: ClassVar[frozenset[Need]] = frozenset({Need.VISION_ROWS, Need.GRID})

    alpha: Share = Field(default=0.5, description="share of a tiled image's tokens that goes to its thumbnail")
    block: int | None = Field(
        default=None,
        description="block of the vision tower whose attention ranks, -1 = the last; None = that of the features",
    )

    def wants_vision_blocks(self, features: int) -> tuple[int, ...]:
        """The block that ranks, and the first."""
        return (features if self.block is None else self.block, 0)

    def select(self, site: LayerSite, count: Tensor) -> Selection:
        """The best of thumbnail and tiles, as many as each is given."""
        import torch

        from tokentrim import Groups

        score, first = site.vision_rows.sum(dim=2).unbind(dim=1)
        grid, tile = site.grid, site.grid.tile.clamp(min=0)
        images = Groups.pictures(grid, site.valid, tiles=False)
        tiles = Groups.pictures(grid, site.valid)
        thumbnail = site.valid & (tile == 0)
        budget = images.share(count.tolist())
        area, number = images.count(thumbnail), images.at_rank(tile, torch.zeros_like(tile))
        whole = torch.where(number == 0, budget, torch.minimum(_part(self.alpha, budget), area))

        # In the thumbnail a token's tile is that whose strip it lies in.
        where = grid.row.clamp(min=0) * grid.cols + grid.col.clamp(min=0)
        strip = 1 + where * number // (grid.rows * grid.cols).clamp(min=1)
        wanted = _part(1 - self.alpha, area)
        strong = thumbnail & (tiles.rank(first) < wanted)
        places = tile.shape[1] + 1  # more than an image has tiles that hold anything
        own = torch.where(thumbnail, strip, tile).clamp(max=places - 1)
        inside = Groups.of(images.before * places + own, site.valid).count(strong)
        quota = (inside / wanted.clamp(min=1) * (budget - whole)).long()
        quota = torch.where(thumbnail, whole, quota)
        site.note(score, "attention, ranked in thumbnail and tiles")
        return self.settled(site, score, (tiles.rank(score) >= quota).long() + 1, count)


def _part(share: float, of: Tensor) -> Tensor:
    """``floor(share of)``."""
    return (of.double() * share).floor().long()
