"""``uniform``: an even stride over the raster."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from tokentrim import LayerSite, Selection, SpatialSelector, Stage, pad_rows
from tokentrim_strategies._keeping import KeepingAtBoundary

if TYPE_CHECKING:
    from torch import Tensor


class Uniform(KeepingAtBoundary, SpatialSelector):
    """Keep visual tokens at even distances in raster order.

    Of N tokens, the i-th of m kept ones is number ``floor((2i + 1) N / (2m))``: the middle of the i-th of m equal
    stretches, in integers, so the gaps differ by at most one. Several images share one raster, image after image.

    A control that reads nothing from the image. It fails where the stride meets the width of the grid (half of a
    24 x 24 grid is every second column); ``pool`` has no such pattern. Cost: none.

    Parameters: ``keep_ratio`` (share kept) or ``keep_count`` (tokens kept per prompt), ``boundary``.
    """

    name: ClassVar[str] = "uniform"
    stage: ClassVar[Stage] = "prefill"

    def select(self, site: LayerSite, count: Tensor) -> Selection:
        """The middles of equal stretches."""
        import torch

        counts = tuple(int(kept) for kept in count)
        slots = torch.arange(max(counts, default=0), device=site.device)
        totals = torch.tensor(site.n_visual, device=site.device).unsqueeze(1)
        shares = torch.tensor(counts, device=site.device).clamp(min=1).unsqueeze(1)
        middles = (2 * slots + 1) * totals // (2 * shares)
        return Selection(pad_rows(middles, counts), counts)
