"""Schedule: which boundary lets how many visual tokens pass, known before anything runs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from tokentrim.errors import StrategyError, complaint


def is_whole(value: object, least: int | None = 0) -> bool:
    """Whether a value is an integer of the host, at least ``least``; a bool, a float and a tensor are none."""
    return isinstance(value, int) and not isinstance(value, bool) and (least is None or value >= least)


@dataclass(frozen=True)
class Schedule:
    """boundary -> keep_count, boundaries ascending, counts never rising.

    Boundary ``b`` lies before decoder layer ``b`` (0-based); boundary 0 is the language model's input.

    Attributes:
        steps: pairs ``(boundary, keep_count)``.
    """

    steps: tuple[tuple[int, int], ...] = ()

    @classmethod
    def of(cls, counts: Mapping[int, int]) -> Schedule:
        """Build from a mapping; sorts the boundaries and checks them."""
        return cls(tuple(sorted(counts.items())))

    def __post_init__(self) -> None:
        whole = all(is_whole(number, None) for step in self.steps for number in step)
        if not (whole and isinstance(self.steps, tuple) and all(len(step) == 2 for step in self.steps)):
            raise StrategyError(
                complaint("a schedule", "be pairs of whole numbers: boundary and keep_count", self.steps,
                          "count tokens with tokentrim.keep_count(), or int()")
            )  # fmt: skip
        last_boundary, last_count = -1, None
        for boundary, count in self.steps:
            if boundary <= last_boundary:
                raise StrategyError(
                    complaint("schedule boundaries", "be >= 0 and ascending", self.steps, "list each boundary once")
                )
            if count < 0 or (last_count is not None and count > last_count):
                raise StrategyError(
                    complaint("schedule counts", "be >= 0 and never rise", self.steps, "a dropped token cannot return")
                )
            last_boundary, last_count = boundary, count

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return iter(self.steps)

    @property
    def boundaries(self) -> tuple[int, ...]:
        """The boundaries at which something is decided, ascending."""
        return tuple(boundary for boundary, _ in self.steps)

    def count_at(self, boundary: int) -> int:
        """The keep_count of a boundary that is in the schedule."""
        return dict(self.steps)[boundary]

    def per_layer(self, n_layers: int, n_visual: int) -> tuple[int, ...]:
        """Visual tokens that each of the ``n_layers`` decoder layers processes."""
        counts: list[int] = []
        current, steps = n_visual, dict(self.steps)
        for layer in range(n_layers):
            current = min(current, steps.get(layer, current))
            counts.append(current)
        return tuple(counts)
