"""``pool``: average pooling of the visual grid."""

from __future__ import annotations

import math
from fractions import Fraction
from functools import lru_cache
from typing import TYPE_CHECKING, ClassVar

from tokentrim import LayerSite, ModelShape, Need, Schedule, Selection, SpatialSelector, Stage, StrategyError, complaint
from tokentrim_strategies._keeping import Keeping

if TYPE_CHECKING:
    from torch import Tensor


class Pool(Keeping, SpatialSelector):
    """Average the visual tokens of rectangular cells of the grid, at the language model's input.

    A grid of R x C tokens becomes r x c cells: of all r <= R, c <= C with ``r c <= m``, m the tokens asked for per
    image, the one that maximises ``(r c)^2 min(a, 1/a)``, where a = (r C)/(c R) is the cells' stretch against the
    grid's own aspect (ours: close to the count first, but no thin strips). So **the count is at most what is asked,
    often a little less**; the schedule holds the realised one, and with it every plan and table (128 of 24 x 24
    gives 11 x 11 = 121). Row y falls into band ``floor(y r / R)``, columns likewise: cells are a partition, equal
    when r and c divide R and C, else differing by one row or column. Every token of a cell has equal weight; the mean
    takes the place, and the position, of the token nearest to the cell's centre.

    Each image, and each frame of a video, is pooled by itself and has an equal share of the budget. Tokens without a
    place in the grid (row separators) are dropped (ours). The schedule knows the model's grid, not the image's: where
    a family's grids vary, it counts as if the grid were as square as n allows, and the count is then met
    exactly by giving some bands one cell more.

    A strong control: at a quarter of the tokens, published audits find it ahead of several attention methods. It fails
    on detail finer than a cell (small text, small objects). Cost: one mean over the visual tokens.

    Parameters: ``keep_ratio`` (share kept) or ``keep_count`` (tokens kept per prompt), both upper bounds.
    """

    name: ClassVar[str] = "pool"
    stage: ClassVar[Stage] = "input"
    needs: ClassVar[frozenset[Need]] = frozenset({Need.GRID})
    merges: ClassVar[bool] = True

    def schedule(self, shape: ModelShape, n_visual: int) -> Schedule:
        """The realised count: images times pooled rows times pooled columns."""
        rows, cols = _grid_of(shape, n_visual)
        images = n_visual // max(rows * cols, 1)
        return Schedule.of({0: images * math.prod(pooled_grid(self.count_of(n_visual) // max(images, 1), rows, cols))})

    def select(self, site: LayerSite, count: Tensor) -> Selection:
        """Every token into the representative of its cell; numbered on the host."""
        import torch

        from tokentrim import Grid, Groups, along, merge_into

        counts, valid = tuple(int(kept) for kept in count), site.valid.cpu()
        grid, width = Grid(*(part.cpu() for part in vars(site.grid).values())), valid.shape[1]
        placed, place = valid & (grid.row >= 0), torch.arange(width).expand_as(valid)
        planes = Groups.of(grid.image, placed).within(2 * grid.frame + grid.plane, placed)
        share = planes.share(counts).masked_fill(~placed, 0)
        sizes, which = torch.stack([share, grid.rows, grid.cols]).flatten(1).unique(dim=1, return_inverse=True)
        bands = torch.tensor([_bands(*size) for size in sizes.T.tolist()])[which].view_as(share)
        band, _, down = along(grid.row, grid.rows, bands)
        start, end = (line * share // bands.clamp(min=1) for line in (band, band + 1))
        column, _, across = along(grid.col, grid.cols, end - start)
        cell = torch.where(share > 0, planes.before + start + column, width).clamp(max=width)
        # Nearest to the centre first, then the lower number.
        nearest = torch.full((len(counts), width + 1), torch.iinfo(torch.int64).max)
        nearest = nearest.scatter_reduce(1, cell, (down + across) * width + place, "amin")
        into = (nearest.gather(1, cell) % max(width, 1)).masked_fill(cell == width, -1)
        whole = torch.tensor([kept == n for kept, n in zip(counts, site.n_visual, strict=True)]).unsqueeze(1)
        into = torch.where(whole & valid, place, into)  # there is nothing to pool, whatever the grid
        for wanted, found in zip(counts, (into == place).sum(dim=1).tolist(), strict=True):
            if wanted != found:
                what, must = "the number of cells with tokens of strategy 'pool'", f"be {wanted}"
                hint = "keep fewer tokens, and let no other strategy prune the input before it"
                raise StrategyError(complaint(what, must, found, hint))
        return merge_into(into.to(site.device), counts)


@lru_cache(maxsize=1024)
def pooled_grid(count: int, rows: int, cols: int) -> tuple[int, int]:
    """The best r x c of at most ``count`` cells for a grid of ``rows`` x ``cols``; (0, 0) for a count of 0."""
    best, best_value = (0, 0), Fraction(0)
    for r in range(1, min(rows, count) + 1):
        c = min(cols, count // r)  # for a given r more columns are always better: the value rises with c
        stretch = Fraction(r * cols, c * rows)
        value = (r * c) ** 2 * min(stretch, 1 / stretch)
        if value > best_value:
            best, best_value = (r, c), value
    return best


def _grid_of(shape: ModelShape, n_visual: int) -> tuple[int, int]:
    """The model's own grid where it divides ``n_visual``, else the squarest grid of that size."""
    vision = shape.vision
    if vision is not None and vision.rows * vision.cols and n_visual % (vision.rows * vision.cols) == 0:
        return vision.rows, vision.cols
    rows = next((r for r in range(math.isqrt(n_visual), 0, -1) if n_visual % r == 0), 0)
    return rows, n_visual // rows if rows else 0


def _bands(share: int, rows: int, cols: int) -> int:
    """Bands that ``share`` cells of one grid are laid out in, none with more cells than the grid has columns."""
    bands, _ = pooled_grid(share, rows, cols)
    while bands < rows and bands * cols < share:
        bands += 1
    return bands
