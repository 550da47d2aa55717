"""What counting asks of a strategy and its parts. :class:`tokentrim.Strategy` answers; nothing here knows it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, runtime_checkable

from tokentrim.counting.schedule import Schedule
from tokentrim.counting.shape import ModelShape

if TYPE_CHECKING:
    from typing_extensions import Self


class SpatialCounts(Protocol):
    """What a plan asks of a decider that acts while the prompt is processed."""

    count_is_static: ClassVar[bool]

    def schedule(self, shape: ModelShape, n_visual: int) -> Schedule:
        """boundary -> keep_count, or upper bounds of it."""
        ...


@runtime_checkable
class TowerCounts(Protocol):
    """What a plan asks of a decider of the prompt whose tokens merge in the vision tower."""

    def merges_in_tower(self, tokens: int, blocks: int) -> tuple[int, ...]:
        """Pairs that merge in each block of the tower, of ``tokens`` patches of a piece."""
        ...


class TemporalCounts(Protocol):
    """What a plan asks of a decider that acts at decode steps."""

    count_is_static: ClassVar[bool]

    def count(self, step: int, layer: int, n_prefill: int, shape: ModelShape) -> int:
        """Visual entries that a layer may still hold in decode forward ``step``."""
        ...

    def evicts(self) -> bool:
        """Whether what is not chosen leaves the cache for good."""
        ...

    def for_answer(self, new_tokens: int) -> Self:
        """The same for an answer of at most so many tokens."""
        ...


class Radius(Protocol):
    """What a plan asks of an edit of one layer's attention."""

    @property
    def radius(self) -> int | None:
        """How far a visual query sees in its plane; None = as far as it likes."""
        ...


class AttentionCounts(Protocol):
    """What a plan asks of what edits attention."""

    def edit(self, layer: int, shape: ModelShape) -> Radius | None:
        """What is edited in a layer; None = nothing."""
        ...


class CountedParts(Protocol):
    """What a strategy is made of, as a plan sees it."""

    @property
    def spatial(self) -> Sequence[SpatialCounts]:
        """Deciders of the prompt, in the order of their declaration."""
        ...

    @property
    def temporal(self) -> TemporalCounts | None:
        """The decider of decode steps, if there is one."""
        ...

    @property
    def attention(self) -> AttentionCounts | None:
        """What edits attention, if anything does."""
        ...


class Counted(Protocol):
    """What can be planned: every :class:`tokentrim.Strategy`."""

    count_is_static: ClassVar[bool]

    def parts(self) -> CountedParts:
        """What it is made of."""
        ...

    def label(self) -> str:
        """Short text for tables."""
        ...

    def spec(self) -> dict[str, Any]:
        """It as plain data."""
        ...
