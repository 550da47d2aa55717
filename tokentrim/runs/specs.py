"""What a run is asked for: a model, its tasks, which share a budget means, how time is taken."""

from __future__ import annotations

import hashlib
import json
from importlib import resources
from typing import Any, ClassVar, Final, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, field_validator

from tokentrim.loading import DeviceName, DTypeName
from tokentrim.plugins.loader import registry
from tokentrim.config.validation import check
from tokentrim.config.yaml_reader import Document, Where, load_yaml

Share: TypeAlias = Literal["layer_mean_ratio", "kv_ratio", "kv_read_ratio", "flops_ratio", "prefill_time_ratio"]
Match: TypeAlias = Share | Literal["fixed"]
MEASURED: Final = "prefill_time_ratio"
"""The share that no plan knows: a knob is solved for it by measuring."""
DOWNSCALE: Final = "downscale"
MOST_QUESTIONS: Final = 100_000
"""Of one task: intervals draw all of a task's questions 2,000 times, which takes 1.6 GB for as many."""
_MOST_REPEATS: Final = 1000
_USUAL: Final = "default.yaml"


class Part(BaseModel):
    """Frozen, closed, and writable as one word where only its first key matters."""

    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True, allow_inf_nan=False)
    shorthand: ClassVar[str] = ""
    whom: ClassVar[str] = ""


class ModelSpec(Part):
    """One model to compare on."""

    shorthand: ClassVar[str] = "model"
    whom: ClassVar[str] = "a model"
    model: str = Field(description="a registered model, such as testbed, or a model folder")
    device: DeviceName = Field(default="auto", description="auto takes a GPU where there is one")
    dtype: DTypeName = Field(default="auto", description="auto takes the one that the model was saved in")


class TaskSpec(Part):
    """One task, with what differs from the comparison's own settings."""

    shorthand: ClassVar[str] = "task"
    whom: ClassVar[str] = "a task"
    task: str = Field(description="a registered task; see 'tokentrim ls task'")
    samples: int | None = Field(
        default=None, ge=1, le=MOST_QUESTIONS, description="questions asked of every method"
    )
    max_new_tokens: int | None = Field(default=None, ge=1, description="default: the task's own limit")

    @field_validator("task")
    @classmethod
    def _known(cls, value: str) -> str:
        registry("task").entry(value)
        return value


class Timing(Part):
    """How time is measured, in a pass of its own after the answers."""

    whom: ClassVar[str] = "timing"
    repeats: int = Field(
        default=5, ge=3, le=_MOST_REPEATS, description="pairs of runs, unpruned and pruned, of each method and budget"
    )
    questions: int = Field(default=8, ge=1, le=MOST_QUESTIONS, description="questions of one timed run, in one batch")
    new_tokens: int = Field(default=16, ge=2, description="new tokens of each timed run")
    memory: bool = Field(default=True, description="also measure peak memory, in one more run")


def usual_comparison() -> Document:
    """The comparison that comes with tokentrim, as read."""
    document = load_yaml((resources.files("tokentrim.compare") / _USUAL).read_text(encoding="utf-8"))
    return Document(document.data, Where(_USUAL, (), document.where.lines))


def _usual_tasks() -> list[str]:
    """Names of the tasks in :func:`usual_comparison`; how many questions it asks is no matter of others."""
    listed: list[Any] = usual_comparison().data["tasks"]
    return [one["task"] if isinstance(one, dict) else one for one in listed]


def asked(model: Any, tasks: Any, whom: str) -> tuple[ModelSpec, tuple[TaskSpec, ...]]:
    """The model and tasks that somebody names; without tasks, those of the comparison that comes with tokentrim.

    Args:
        model: a name, a mapping, or a ModelSpec.
        tasks: names or TaskSpecs.
        whom: who asks, for messages.

    Raises:
        ConfigError: when a value is wrong.
        UnknownNameError: when a task is not registered.
    """
    wanted = tuple(
        task if isinstance(task, TaskSpec) else check(TaskSpec, {"task": task}, f"a task of {whom}", Where())
        for task in tasks or _usual_tasks()
    )
    if isinstance(model, ModelSpec):
        return model, wanted
    named = {"model": model} if isinstance(model, str) else model
    return check(ModelSpec, named, f"the model of {whom}", Where()), wanted


def digest(data: Any) -> str:
    """Short hash of plain data."""
    text = json.dumps(data, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]
