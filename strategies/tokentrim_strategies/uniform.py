"""``uniform``: one token of each of equal stretches of the raster."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from tokentrim import LayerSite, Need, Selection, SpatialSelector, Stage, pad_rows
from tokentrim_strategies._keeping import KeepingAtBoundary

if TYPE_CHECKING:
    from torch import Tensor


class Uniform(KeepingAtBoundary, SpatialSelector):
    """Keep visual tokens that are spread evenly over the raster: one of each of m equal stretches.

    Of N tokens, the i-th of m kept ones lies in ``[floor(i N / m), floor((i + 1) N / m))``: at a place drawn at random
    (``pattern: jitter``, the default), a function of the seed and of the sample's content alone, or in the middle, at
    ``floor((2i + 1) N / (2m))`` (``stride``). Several images share one raster, image after image.

    A control that reads nothing from the image but draws its places by it. Even distances meet the width of the grid
    (half of a 24 x 24 grid is every second column), so what ``stride`` keeps may be a few columns, and its scores say
    more about the grid than about methods. Cost: one hash per token.

    Parameters: ``keep_ratio`` (share kept) or ``keep_count`` (tokens kept per prompt), ``boundary``, ``pattern``,
    ``seed`` (of the jitter).
    """

    name: ClassVar[str] = "uniform"
    stage: ClassVar[Stage] = "prefill"
    needs: ClassVar[frozenset[Need]] = frozenset({Need.RANDOM})

    pattern: Literal["jitter", "stride"] = Field(
        default="jitter", description="place in each stretch: drawn, or middle"
    )
    seed: int = Field(default=0, ge=0, lt=2**31, description="seed of the jitter")

    def needed(self) -> frozenset[Need]:
        """Noise, for the jitter."""
        return self.needs if self.pattern == "jitter" else frozenset()

    def select(self, site: LayerSite, count: Tensor) -> Selection:
        """One place in every stretch."""
        import torch

        counts = tuple(int(kept) for kept in count)
        slots = torch.arange(max(counts, default=0), device=site.device)
        totals = torch.tensor(site.n_visual, device=site.device).unsqueeze(1)
        shares = torch.tensor(counts, device=site.device).clamp(min=1).unsqueeze(1)
        if self.pattern == "stride":
            return Selection(pad_rows((2 * slots + 1) * totals // (2 * shares), counts), counts)
        begin, end = slots * totals // shares, (slots + 1) * totals // shares
        noise = site.random(self.seed, salt=site.boundary)[:, : len(slots)]
        places = begin + torch.minimum((noise * (end - begin)).long(), end - begin - 1)
        return Selection(pad_rows(places, counts), counts)
