"""What strategies share that divide their budget among crops, frames or tiles."""

from __future__ import annotations

from abc import ABC
from typing import TYPE_CHECKING, ClassVar, Literal, cast

from pydantic import Field

from tokentrim import LayerSite, Selection
from tokentrim_strategies._keeping import Flag, Keeping

if TYPE_CHECKING:
    from torch import Tensor


class KeepingShares(Keeping, ABC):
    """A :class:`Keeping` that divides its budget among crops, frames or tiles, in which numbers are rounded."""

    total: Literal["exact", "released"] = Field(
        default="exact",
        description="tokens in all: exactly as many as asked for, or what the rounding of the released code leaves",
    )

    count_is_static: ClassVar[bool] = cast(bool, Flag["KeepingShares"](False, lambda own: own.total == "exact"))

    def share_of(self, count: int, n_visual: int) -> float:
        """Share of ``n_visual`` tokens of which ``count`` are to stay; as it is written where code rounds it anew."""
        if self.total == "exact":
            return count / max(n_visual, 1)
        return self.count_of(n_visual) / max(n_visual, 1) if self.keep_ratio is None else self.keep_ratio

    def raised(self, share: Tensor, weight: Tensor, rivals: Tensor) -> Tensor:
        """[P]: ``min(1, R (1 + p - mean p))``, where p is the softmax of the weights of a picture and its rivals.

        Args:
            share: [P], R.
            weight: [P].
            rivals: bool [P, P]: which are the rivals of each, itself among them.
        """
        bonus = weight.expand_as(rivals).masked_fill(~rivals, float("-inf")).softmax(dim=1).diagonal()
        return (share * (1 + bonus - 1 / rivals.sum(dim=1).clamp(min=1))).clamp(max=1.0)

    def settled(self, site: LayerSite, scores: Tensor, tiers: Tensor, count: Tensor) -> Selection:
        """The tokens of the lowest tiers, and of a tier those with the highest scores, as many as ``total`` says.

        Args:
            site: where it decides.
            scores: real numbers [B, N], higher = kept.
            tiers: int64 [B, N]: 0 = before all others, 1 = within the share of its group, 2 = beyond it.
            count: int64 [B] on the host: tokens asked for.
        """
        from tokentrim import grouped_order

        if self.total == "released":
            kept = (tiers < 2) & site.valid
            return Selection.from_mask(kept, tuple(kept.sum(dim=1).tolist()))
        order = grouped_order(scores, tiers.masked_fill(~site.valid, 3))
        return Selection.from_mask(order < count.to(site.device).unsqueeze(1), tuple(int(n) for n in count))
