"""Parameters that many strategies share: how much is kept, and at which boundary."""

from __future__ import annotations

from abc import ABC
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, ClassVar, Generic, Literal, TypeVar, cast

from pydantic import BaseModel, Field

from tokentrim import (
    LayerSite,
    ModelShape,
    ReplacedBy,
    Schedule,
    Selection,
    Spatial,
    SpatialSelector,
    Strategy,
    StrategyError,
    TemporalScorer,
    complaint,
    resolve_count,
)

if TYPE_CHECKING:
    from torch import Tensor

Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
ShareOrNone = Annotated[float | None, Field(ge=0, le=1, allow_inf_nan=False)]
RatioOrNone = Annotated[ShareOrNone, ReplacedBy("keep_count")]


def check_boundary(strategy: Strategy, parameter: str, boundary: int, shape: ModelShape) -> None:
    """Raise StrategyError unless ``boundary`` lies before one of the model's decoder layers."""
    if boundary >= shape.n_layers:
        raise StrategyError(
            complaint(
                f"{parameter} of strategy {strategy.name!r}",
                f"be below {shape.n_layers}, the number of decoder layers",
                boundary,
                "a boundary lies before a layer, counted from 0",
            )
        )


Whose = TypeVar("Whose")


class Flag(Generic[Whose]):
    """A fact of a class that parameters decide: the cautious answer on the class, the true one on an object."""

    def __init__(self, cautious: bool, of: Callable[[Whose], bool]) -> None:
        self.cautious, self.of = cautious, of

    def __get__(self, instance: Whose | None, owner: type[Whose] | None = None) -> bool:
        return self.cautious if instance is None else self.of(instance)


class Blocks(BaseModel):
    """Pruning boundaries at equal distances, and the blocks of layers between them."""

    start: int = Field(default=2, ge=1, description="first boundary at which tokens go")
    stride: Annotated[int, Field(ge=1)] | Literal["auto"] = Field(
        default="auto",
        description="layers from one pruning boundary to the next; auto: a third of the model's, and one",
    )

    def strides(self, shape: ModelShape) -> int:
        """The stride in layers: as given, or ``floor(L / 3) + 1``."""
        return shape.n_layers // 3 + 1 if self.stride == "auto" else self.stride

    def boundaries(self, shape: ModelShape) -> range:
        """start, start + stride, ... below L."""
        return range(self.start, shape.n_layers, self.strides(shape))

    def in_front(self, layer: int, shape: ModelShape) -> int:
        """The layer before the block of ``layer``; layer 0 where no boundary lies before ``layer``."""
        return max((boundary - 1 for boundary in self.boundaries(shape) if boundary <= layer), default=0)


class ReadsBlock:
    """A spatial strategy that reads one block of the vision tower, which its parameter ``block`` names."""

    if TYPE_CHECKING:
        block: int | None

    def wants_vision_blocks(self, features: int) -> tuple[int, ...]:
        """The one block; that of the features where it is None."""
        return (features if self.block is None else self.block,)


class Withdrawing(SpatialSelector, ABC):
    """A spatial strategy that drops every visual token where it acts."""

    def select(self, site: LayerSite, count: Tensor) -> Selection:
        """The empty selection."""
        return Selection.from_mask(site.valid.new_zeros(site.valid.shape), (0,) * len(site.n_visual))


class Keeping(Spatial, ABC):
    """A spatial strategy that keeps a share, or a number, of the visual tokens at one boundary.

    ``keep_count`` takes the place of the default ``keep_ratio``; writing both is an error.
    """

    budget_knob: ClassVar[str | None] = "keep_ratio"
    acts_at: ClassVar[str] = "boundary"  # the parameter that says where it acts; without it, at the input

    keep_ratio: RatioOrNone = Field(default=0.25, description="share of the visual tokens that is kept")
    keep_count: int | None = Field(
        default=None, ge=0, description="visual tokens kept per prompt, instead of keep_ratio"
    )

    def count_of(self, n_visual: int) -> int:
        """Visual tokens that stay of ``n_visual``."""
        return resolve_count(n_visual, self.keep_ratio, self.keep_count)

    def boundary_of(self, shape: ModelShape) -> int:
        """Where it acts in a model."""
        return getattr(self, self.acts_at, 0)

    def schedule(self, shape: ModelShape, n_visual: int) -> Schedule:
        """One cut."""
        boundary = self.boundary_of(shape)
        check_boundary(self, self.acts_at, boundary, shape)
        return Schedule.of({boundary: self.count_of(n_visual)})


class KeepingEntries(TemporalScorer, ABC):
    """A temporal strategy that keeps a share, or a number, of each layer's visual entries, decided once.

    ``keep_count`` takes the place of the default ``keep_ratio``; writing both is an error.
    """

    budget_knob: ClassVar[str | None] = "keep_ratio"

    keep_ratio: RatioOrNone = Field(default=0.25, description="share of a layer's visual entries that is kept")
    keep_count: int | None = Field(
        default=None, ge=0, description="visual entries kept per prompt and layer, instead of keep_ratio"
    )

    def count(self, step: int, layer: int, n_prefill: int, shape: ModelShape) -> int:
        """The same at every step, in every layer."""
        return resolve_count(n_prefill, self.keep_ratio, self.keep_count)

    def ranks_once(self) -> bool:
        """What the prompt attended to does not change."""
        return True


class KeepingAtBoundary(Keeping, ABC):
    """A :class:`Keeping` whose boundary is a parameter."""

    boundary: int = Field(
        default=0, ge=0, description="decoder layer (0-based) before which it acts; 0 = the language model's input"
    )


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
