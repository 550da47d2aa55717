"""What a run is asked for: a model, its tasks, which share a budget means, how time is taken."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from importlib import resources
from typing import Any, ClassVar, Final, Literal, TypeAlias

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationInfo,
    field_validator,
    model_serializer,
    model_validator,
)

from tokentrim.config.validation import check
from tokentrim.config.yaml_reader import Document, Where, load_yaml
from tokentrim.contracts.load_options import LoadOptions
from tokentrim.contracts.tasks import Split
from tokentrim.errors import complaint
from tokentrim.plugins.loader import registry
from tokentrim.runs.questions import count_of
from tokentrim.tasks.names import parse

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


class ModelSpec(Part, LoadOptions):
    """One model to compare on, and how it is loaded."""

    shorthand: ClassVar[str] = "model"
    whom: ClassVar[str] = "a model"
    model: str = Field(
        description="a registered model, such as testbed, a model folder, or an id of the hub: owner/name[@revision]"
    )


class TaskSpec(Part):
    """One task, with what differs from the comparison's own settings."""

    shorthand: ClassVar[str] = "task"
    whom: ClassVar[str] = "a task"
    task: str = Field(description="a registered task (see 'tokentrim ls task'), or a file of questions")
    metric: str | None = Field(
        default=None, exclude=True, description="of a file or of lmms-eval: what scores the answers, such as anls"
    )
    group: str | None = Field(default=None, exclude=True, description="of a file: only the questions of this group")
    split: Split | None = Field(default=None, description="default: the comparison's own")
    samples: int | None = Field(
        default=None, ge=1, le=MOST_QUESTIONS,
        description="questions asked of every method; of a file without it, as many as there are, at most as others",
    )  # fmt: skip
    max_new_tokens: int | None = Field(default=None, ge=1, description="default: the task's own limit")

    @model_validator(mode="before")
    @classmethod
    def _named(cls, values: Any, info: ValidationInfo) -> Any:
        """Write group and metric into the name, and a file as it is meant in a configuration file."""
        if not isinstance(values, Mapping) or not isinstance(values.get("task"), str):
            return values
        where = info.context if isinstance(info.context, Where) else Where()
        own = {key: values[key] for key in ("group", "metric") if values.get(key) is not None}
        rest = {key: value for key, value in values.items() if key not in own}
        return {**rest, "task": _whole_name(values["task"], own, where)}

    @field_validator("task")
    @classmethod
    def _known(cls, value: str) -> str:
        registry("task").entry(value)
        return value

    @model_serializer(mode="wrap")
    def _without_defaults(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        written: dict[str, Any] = write(self)
        return {key: value for key, value in written.items() if key != "split" or value is not None}

    def asked(self, split: Split, samples: int) -> tuple[Split, int]:
        """The split that is asked, and how many of its questions.

        Args:
            split: of a task that does not say otherwise.
            samples: the same; a task that has fewer is asked all of them.
        """
        split = self.split or split
        there = count_of(registry("task").get(self.task), split)
        return split, self.samples or (samples if there is None else max(1, min(samples, there)))


def _whole_name(name: str, own: Mapping[str, Any], where: Where) -> str:
    """The name of a task with its group and its metric.

    Raises:
        ValueError: when it has none to choose.
    """
    tasks = registry("task")
    if name not in tasks and tasks.member(name) is None and os.path.isdir(where.near(name)):
        name = f"{name}/"
    file = parse(name)
    if file is None or name in tasks:
        member = tasks.member(name)
        if "group" in own or ("metric" in own and member is None):
            key = "group" if "group" in own else "metric"
            raise ValueError(complaint(f"task {name!r}", f"be in a file to have a {key}", own[key], f"drop {key!r}"))
        return f"{name}@{own['metric']}" if own else name
    for key, value in own.items():
        if not isinstance(value, str) or (getattr(file, key) or value) != value:
            raise ValueError(complaint(f"{key} of task {name!r}", "be text, and given once", value))
    slash = "/" if file.path.endswith("/") else ""
    return str(file._replace(**own, path=f"{where.near(file.path)}{slash}"))


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


def usual_tasks() -> list[str]:
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
        for task in tasks or usual_tasks()
    )
    if isinstance(model, ModelSpec):
        return model, wanted
    named = {"model": model} if isinstance(model, str) else model
    return check(ModelSpec, named, f"the model of {whom}", Where()), wanted


def digest(data: Any) -> str:
    """Short hash of plain data."""
    text = json.dumps(data, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]
