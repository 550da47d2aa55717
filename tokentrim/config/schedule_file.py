"""The file that a calibration writes and the strategy ``layer-counts`` reads: what is kept from which boundary on.

Such as this one, in which ``counts: {8: 0}`` could take the place of the rates::

    format: 1
    method: gsearch
    made_for: {layers: 12, hidden_size: 256, heads: 8}
    query: text
    rates: {2: 0.65, 5: 0.4}
    provenance: {...}

The provenance says how it was found: people read it, the strategy does not.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from tokentrim.config.validation import check
from tokentrim.config.yaml_reader import load_yaml
from tokentrim.counting.rounding import keep_count
from tokentrim.counting.shape import ModelShape
from tokentrim.errors import StrategyError, complaint

Query = Literal["text", "last"]
FORMAT: Final = 1
_WHOM: Final = "the schedule file"
_FEWEST_DIGITS: Final = 6  # of a stored rate; more only where that many do not give the count back


class MadeFor(BaseModel):
    """Sizes of the model that a schedule was found on; None where nothing is demanded."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    layers: int = Field(ge=1, description="decoder layers")
    hidden_size: int | None = Field(default=None, ge=1, description="width of the language model")
    heads: int | None = Field(default=None, ge=1, description="query heads of a layer")

    @classmethod
    def of(cls, shape: ModelShape) -> MadeFor:
        """The sizes of ``shape``."""
        return cls(layers=shape.n_layers, hidden_size=shape.hidden_size, heads=shape.n_heads)

    def require(self, shape: ModelShape, whom: str) -> None:
        """Raise StrategyError unless ``shape`` has these sizes."""
        found = {"layers": shape.n_layers, "hidden_size": shape.hidden_size, "heads": shape.n_heads}
        wanted = self.model_dump(exclude_none=True)
        differing = {key: found[key] for key in wanted if wanted[key] != found[key]}
        if differing:
            raise StrategyError(
                complaint(
                    f"the model under {whom}",
                    f"have {_sizes({key: wanted[key] for key in differing})}, as the one it was calibrated on",
                    _sizes(differing),
                    "calibrate on this model: tokentrim calibrate",
                )
            )


def _sizes(values: Mapping[str, int]) -> str:
    """``layers 12, heads 8``."""
    return ", ".join(f"{key} {value}" for key, value in values.items())


class ScheduleFile(BaseModel):
    """A calibrated schedule. Exactly one of ``rates`` and ``counts`` is given."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal[1] = Field(description="version of this file's layout: 1")
    method: str = Field(description="what found it, such as gsearch, psigmoid or vtw")
    made_for: MadeFor | None = Field(default=None, description="sizes of the model; any other is refused")
    query: Query = Field(default="text", description="whose attention ranks, as in the strategy layer-counts")
    rates: dict[int, float] | None = Field(default=None, description="boundary -> share of all visual tokens kept")
    counts: dict[int, int] | None = Field(default=None, description="boundary -> visual tokens kept per prompt")
    provenance: dict[str, Any] = Field(default_factory=dict, description="how it was found")

    @field_validator("rates", "counts")
    @classmethod
    def _falls(cls, value: dict[int, float] | None) -> dict[int, float] | None:
        return value if value is None else falling(value, f"of {_WHOM}")

    @model_validator(mode="after")
    def _one_of_the_two(self) -> ScheduleFile:
        if (self.rates is None) == (self.counts is None):
            given = [key for key in ("rates", "counts") if getattr(self, key) is not None]
            raise ValueError(complaint(_WHOM, "give either rates or counts", given or None, "set exactly one of them"))
        return self


def falling(steps: Mapping[int, float], of_whom: str) -> dict[int, Any]:
    """``steps``, boundaries ascending.

    Args:
        steps: boundary -> rate, or boundary -> count.
        of_whom: for messages, such as ``"of the schedule file"``.

    Raises:
        ValueError: unless every boundary is at least 1, and the values are finite, not negative and never rise.
    """
    ordered = dict(sorted(steps.items()))
    early = [boundary for boundary in ordered if boundary < 1]
    if not ordered or early:
        raise ValueError(
            complaint(f"boundaries {of_whom}", "be at least 1, and one at least", early or {},
                      "a cut ranks by the layer before it, so the first possible boundary is 1")
        )  # fmt: skip
    values = list(ordered.values())
    if any(not math.isfinite(value) or value < 0 for value in values):
        raise ValueError(complaint(f"what is kept {of_whom}", "be finite and >= 0", ordered))
    if any(later > earlier for earlier, later in pairwise(values)):
        raise ValueError(
            complaint(f"what is kept {of_whom}", "never rise with depth", ordered, "a dropped token cannot return")
        )
    if any(isinstance(value, float) and value > 1 for value in values):
        raise ValueError(
            complaint(f"rates {of_whom}", "lie in [0, 1]", ordered, "write 0.25 to keep a quarter, or give counts")
        )
    return ordered


def rates_of(counts: Sequence[int], n_visual: int) -> dict[int, float]:
    """Rates that give exactly these counts back for prompts of ``n_visual`` visual tokens.

    A rate is rounded up to as many digits as it needs, because :func:`tokentrim.keep_count` rounds down.

    Args:
        counts: visual tokens that each layer processes, first layer first; never rising.
        n_visual: visual tokens before any pruning, >= 1.

    Returns:
        boundary -> rate, at those boundaries alone where the count falls.
    """
    found: dict[int, float] = {}
    before = n_visual
    for layer, count in enumerate(counts):
        if count != before:
            digits = _FEWEST_DIGITS
            while keep_count(rate := _up(count, n_visual, digits), n_visual) != count:
                digits += 1
            found[layer] = rate
        before = count
    return found


def _up(count: int, n: int, digits: int) -> float:
    """``count / n``, rounded up to so many digits."""
    return -(-count * 10**digits // n) / 10**digits


def read_schedule(path: Path) -> ScheduleFile:
    """A schedule from its file.

    Raises:
        ConfigError: when the file cannot be read or is no schedule; names file, line and key.
    """
    document = load_yaml(path)
    return check(ScheduleFile, document.data, _WHOM, document.where)
