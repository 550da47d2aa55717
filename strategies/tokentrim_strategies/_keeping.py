"""Parameters that many strategies share: how much is kept, and at which boundary."""

from __future__ import annotations

from abc import ABC
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, ClassVar, Generic, TypeVar

from pydantic import Field

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


class KeepingAtBoundary(Keeping, ABC):
    """A :class:`Keeping` whose boundary is a parameter."""

    boundary: int = Field(
        default=0, ge=0, description="decoder layer (0-based) before which it acts; 0 = the language model's input"
    )
