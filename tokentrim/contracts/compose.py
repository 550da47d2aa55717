"""Compositions: several parts at different boundaries and steps, acting as one strategy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

from tokentrim.contracts.sites import Need
from tokentrim.contracts.strategy import Parts, Spatial, Stage, Strategy, Temporal
from tokentrim.counting.solve import Knob
from tokentrim.errors import StrategyError, complaint

if TYPE_CHECKING:
    from typing_extensions import Self


class Composition(Strategy):
    """Several spatial parts at different boundaries and at most one temporal part, acting as one strategy."""

    name: ClassVar[str] = "composition"
    stage: ClassVar[Stage] = "prefill"
    spatial: tuple[Spatial, ...] = ()
    temporal: Temporal | None = None

    def parts(self) -> Parts:
        """The parts as given."""
        return Parts(self.spatial, self.temporal)

    def needed(self) -> frozenset[Need]:
        """Union over the parts."""
        return frozenset[Need]().union(*(part.needed() for part in self.parts().deciders))

    def for_answer(self, new_tokens: int) -> Self:
        """Its temporal part for such an answer."""
        temporal = None if self.temporal is None else self.temporal.for_answer(new_tokens)
        return self if temporal is self.temporal else self.model_copy(update={"temporal": temporal})

    def label(self) -> str:
        """The parts' labels joined by ``+``."""
        return " + ".join(part.label() for part in self.parts().deciders) or "none"

    def knob(self, largest_count: int) -> Knob[Strategy]:
        """The knob of the one spatial part that has one; where none has, that of the temporal part."""
        tunable = [part for part in self.spatial if part.budget_knob is not None]
        if len(tunable) > 1:
            names = [f"{part.name}.{part.budget_knob}" for part in tunable]
            raise StrategyError(
                complaint(
                    f"strategy {self.label()!r}",
                    "have one budget knob",
                    names,
                    f"leave the budget out, and set {' and '.join(names)} by hand",
                )
            )
        turned = tunable[0] if tunable else self.temporal
        if turned is None:
            return super().knob(largest_count)
        own = turned.knob(largest_count)

        def turn(value: Any) -> Strategy:
            spatial = [own.turn(value) if part is turned else part for part in self.spatial]
            return compose(spatial, own.turn(value) if turned is self.temporal else self.temporal)

        return replace(own, whole=self, turn=turn)

    def spec(self) -> dict[str, Any]:
        """``{spatial: [...], temporal: {...}}``."""
        return {
            "spatial": [part.spec() for part in self.spatial],
            **({"temporal": self.temporal.spec()} if self.temporal else {}),
        }


def compose(spatial: Sequence[Strategy] = (), temporal: Strategy | None = None) -> Strategy:
    """Combine parts into one strategy.

    Args:
        spatial: strategies with spatial parts only.
        temporal: a strategy with a temporal part only, or None.

    Raises:
        StrategyError: when a part is of the other kind, or two spatial parts disagree on the position policy.
    """
    for strategy in (*spatial, *([temporal] if temporal else [])):
        if strategy.attention_part is not None:
            raise StrategyError(
                complaint(
                    f"part {strategy.label()!r}",
                    "not edit attention: such a strategy acts alone",
                    strategy.name,
                    "use it by its name, without 'spatial:' and 'temporal:'",
                )
            )
    deciders: list[Spatial] = []
    for strategy in spatial:
        if strategy.temporal_part is not None:
            raise StrategyError(
                complaint(
                    f"spatial part {strategy.label()!r}",
                    "act during prefill only",
                    "a temporal strategy",
                    "move it to 'temporal:'",
                )
            )
        deciders.extend(strategy.spatial_parts)
    if temporal is not None and (temporal.spatial_parts or temporal.temporal_part is None):
        raise StrategyError(
            complaint(
                f"temporal part {temporal.label()!r}",
                "act at decode steps only",
                "a spatial strategy",
                "move it to 'spatial:'",
            )
        )
    require_one_policy(deciders)
    return Composition(spatial=tuple(deciders), temporal=temporal.temporal_part if temporal else None)


def require_one_policy(parts: Sequence[Spatial]) -> None:
    """Raise StrategyError unless all spatial parts of a strategy share one position policy."""
    policies = {part.positions for part in parts}
    if len(policies) > 1:
        raise StrategyError(
            complaint(
                "spatial parts of one strategy",
                "share one position policy",
                sorted(policies),
                "set the same 'positions' on each part",
            )
        )
