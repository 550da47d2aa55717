"""What to calibrate: the search and its parameters, the model, the questions; checked before anything runs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Final, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from tokentrim.config.validation import check
from tokentrim.config.yaml_reader import Where
from tokentrim.runs.specs import MOST_QUESTIONS, ModelSpec, TaskSpec, asked

Quality = Literal["score", "likelihood"]
Direction = Literal["withdrawn-full", "full-withdrawn"]
TOLERANCE: Final[Mapping[Quality, float]] = {"score": 0.01, "likelihood": 0.02}
Options = TypeVar("Options", bound="CalibrationOptions")


class CalibrationOptions(BaseModel):
    """What all searches share.

    The questions are the first ``samples`` of each task's *calibration* split; a test question is never looked at.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    method: ClassVar[str] = ""

    model: ModelSpec = Field(
        default=ModelSpec(model="testbed"), description="a registered model, a folder, or an id of the hub"
    )
    tasks: tuple[TaskSpec, ...] = Field(min_length=1, description="tasks whose calibration questions are asked")
    samples: int = Field(default=32, ge=1, le=MOST_QUESTIONS, description="questions of each task")
    batch_size: int = Field(default=25, ge=1, description="questions answered at once")
    first: int = Field(default=1, ge=1, description="first boundary at which tokens may go")

    def to_dict(self) -> dict[str, Any]:
        """Plain data for the record."""
        return {"method": self.method, **self.model_dump(mode="json")}


class RateOptions(CalibrationOptions):
    """What the searches of keep rates share."""

    query: Literal["text", "last"] = Field(default="text", description="whose attention ranks, as in layer-counts")
    quality: Quality = Field(
        default="score", description="the tasks' own score, or the likelihood of the right answers"
    )


class GSearch(RateOptions):
    """The least keep rate of each layer with which the quality holds."""

    method: ClassVar[str] = "gsearch"

    tolerance: float | None = Field(
        default=None, ge=0, allow_inf_nan=False,
        description="quality that may be lost in all: share of the score (default 0.01) or nats per token (0.02)",
    )  # fmt: skip
    resolution: float = Field(default=0.05, gt=0, le=1, description="distance of neighbouring keep rates")

    @property
    def slack(self) -> float:
        """The tolerance, or the default of the quality."""
        return TOLERANCE[self.quality] if self.tolerance is None else self.tolerance


class PSigmoid(RateOptions):
    """The curve of keep rates with the best quality among those that meet a budget."""

    method: ClassVar[str] = "psigmoid"

    budget: float = Field(default=0.25, gt=0, le=1, description="share of the unpruned layer-mean visual tokens")
    trials: int = Field(default=40, ge=2, description="curves to try")
    seed: int = Field(default=0, ge=0, lt=2**32, description="of the sampler")


class VTW(CalibrationOptions):
    """The first boundary at which withdrawing every visual token leaves the next token's distribution as it is."""

    method: ClassVar[str] = "vtw"

    first: int = Field(default=5, ge=0, description="first boundary to try; 5 in the released code")
    eta: float = Field(default=0.003, ge=0, allow_inf_nan=False, description="mean divergence allowed, in nats")
    direction: Direction = Field(
        default="withdrawn-full",
        description="KL(withdrawn || full), as the released code has it, or KL(full || withdrawn)",
    )


class FitSearch(CalibrationOptions):
    """How many visual tokens each layer deletes so that a share of their FLOPs goes and attention changes evenly."""

    method: ClassVar[str] = "fitprune"

    flops_cut: float = Field(default=0.6, gt=0, lt=1, description="share of the visual tokens' FLOPs that has to go")


def options_from(kind: type[Options], values: Mapping[str, Any]) -> Options:
    """Checked options; without tasks, those of the comparison that comes with tokentrim.

    Args:
        kind: ``GSearch``, ``PSigmoid``, ``VTW`` or ``FitSearch``.
        values: its fields; ``model`` may be a name or a mapping, and ``tasks`` names.

    Raises:
        ConfigError: when a value is wrong.
        UnknownNameError: when a task is not registered.
    """
    whom = f"calibrate {kind.method}"
    model, tasks = asked(values.get("model", "testbed"), values.get("tasks"), whom)
    return check(kind, {**values, "model": model, "tasks": tasks}, whom, Where())
