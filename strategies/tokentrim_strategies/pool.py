"""``pool``: average pooling of the visual grid."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from functools import lru_cache
from itertools import accumulate
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
        """Every token into the representative of its cell."""
        import torch

        counts = tuple(int(kept) for kept in count)
        kept = torch.full((len(counts), max(counts, default=0)), -1, dtype=torch.int64)
        target = torch.full(site.ids.shape, -1, dtype=torch.int64)
        for row, (wanted, n) in enumerate(zip(counts, site.n_visual, strict=True)):
            if wanted:
                cells, offsets = _cells(site, row, wanted)
                kept[row, :wanted], target[row, :n] = _merge(cells, offsets, wanted)
        return Selection(kept.to(site.device), counts, target.to(site.device))


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


def _cells(site: LayerSite, row: int, wanted: int) -> tuple[Tensor, Tensor]:
    """Cell of each token of a sample (-1: none), and its squared distance from the cell's centre, in half steps."""
    import torch

    grid, n = site.grid, site.n_visual[row]
    image, frame, plane, y, x, height, width = (
        part[row, :n].cpu() for part in (grid.image, grid.frame, grid.plane, grid.row, grid.col, grid.rows, grid.cols)
    )
    placed = (y >= 0) & (x >= 0)
    sizes = torch.unique(torch.stack([image, frame, plane, height, width], dim=1)[placed], dim=0).tolist()
    cells, distances = torch.full((n,), -1), torch.zeros(n, dtype=torch.int64)
    first = 0
    for (one_image, one_frame, one_plane, rows, cols), share in zip(sizes, _shares(sizes, wanted), strict=True):
        inside = placed & (image == one_image) & (frame == one_frame) & (plane == one_plane)
        band_rows = _bands(share, rows, cols)
        band = y[inside] * band_rows // rows
        start = band * share // max(band_rows, 1)
        across = (band + 1) * share // max(band_rows, 1) - start
        column = x[inside] * across // cols
        cells[inside] = first + start + column if share else -1
        distances[inside] = _from_centre(y[inside], band, band_rows, rows) + _from_centre(
            x[inside], column, across, cols
        )
        first += share
    return cells, distances


def _shares(planes: Sequence[Sequence[int]], wanted: int) -> list[int]:
    """``wanted`` cells over the planes [..., rows, cols], in proportion to their sizes, exact in sum."""
    ends = list(accumulate(plane[-2] * plane[-1] for plane in planes))
    marks = [end * wanted // ends[-1] for end in ends] if ends else []
    return [mark - before for before, mark in zip([0, *marks], marks, strict=False)]


def _bands(share: int, rows: int, cols: int) -> int:
    """Bands that ``share`` cells of one grid are laid out in, none with more cells than the grid has columns."""
    bands, _ = pooled_grid(share, rows, cols)
    while bands < rows and bands * cols < share:
        bands += 1
    return bands


def _from_centre(place: Tensor, part: Tensor, parts: Tensor | int, size: int) -> Tensor:
    """Squared distance, in half steps, from the middle of the ``part``-th of ``parts`` parts of 0..size-1."""
    first = -(-part * size // parts)
    last = -(-(part + 1) * size // parts) - 1
    return (2 * place - first - last) ** 2


def _merge(cells: Tensor, distances: Tensor, wanted: int) -> tuple[Tensor, Tensor]:
    """Representatives in raster order, and the slot that each token goes into (-1: none)."""
    import torch

    n, beyond = len(cells), torch.iinfo(torch.int64).max
    if wanted == n:  # nothing to pool, whatever the grid
        return torch.arange(n), torch.arange(n)
    placed = cells >= 0
    order = distances * n + torch.arange(n)  # nearest first, then the lower number
    nearest = torch.full((wanted,), beyond).scatter_reduce(0, cells[placed], order[placed], "amin")
    if bool((nearest == beyond).any()):
        raise StrategyError(
            complaint(
                "the number of cells with tokens of strategy 'pool'",
                f"be {wanted}",
                int((nearest != beyond).sum()),
                "keep fewer tokens, and let no other strategy prune the input before it",
            )
        )
    kept, by_place = (nearest % n).sort()
    slots = by_place.argsort()
    return kept, slots[cells.clamp(min=0)].masked_fill(~placed, -1)
