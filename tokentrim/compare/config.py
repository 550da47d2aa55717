"""What a comparison compares: models, tasks, methods and budgets, read from YAML and checked before anything runs."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, ClassVar, Final, Literal, TypeAlias

from pydantic import AfterValidator, Field, ValidationInfo, field_validator, model_validator

from tokentrim.config.specs import StrategySpec, load_yaml, strategy_from
from tokentrim.config.validation import check
from tokentrim.config.yaml_reader import Where
from tokentrim.contracts.tasks import Split
from tokentrim.errors import complaint
from tokentrim.executors.base import Executor
from tokentrim.executors.choosing import executor_from
from tokentrim.plugins.loader import registry
from tokentrim.runs import cells
from tokentrim.runs.specs import (
    DOWNSCALE,
    MOST_QUESTIONS,
    Match,
    ModelSpec,
    Part,
    Share,
    TaskSpec,
    Timing,
    digest,
    usual_comparison,
)

Correction: TypeAlias = Literal["holm", "bonferroni", "fdr_bh", "none"]
Control: TypeAlias = Literal["downscale"]
CONTROLS: Final = (*cells.CONTROLS, DOWNSCALE)
_WHOM: Final = "the comparison"
_ALIKE: Final = 1e-6  # shares nearer than that are one: no prompt has so many tokens that they would differ by one


def _checked_shares(values: tuple[float, ...]) -> tuple[float, ...]:
    """Shares in (0, 1], each once, largest first."""
    if not values or any(not 0 < value <= 1 for value in values):
        raise ValueError(complaint("budgets", "be shares in (0, 1]", list(values), "write 0.3 to keep 30 %"))
    found = sorted(values, reverse=True)
    twice = next((pair for pair in pairwise(found) if pair[0] - pair[1] < _ALIKE), None)
    if twice is not None:
        raise ValueError(complaint("budgets", f"differ by {_ALIKE:g} or more", list(twice), "list each once"))
    return tuple(found)


Shares = Annotated[tuple[float, ...], AfterValidator(_checked_shares)]


class MethodSpec(Part):
    """One strategy, or a control that acts before the processor, and how its budgets are matched."""

    shorthand: ClassVar[str] = "strategy"
    whom: ClassVar[str] = "a method"
    # Any to pydantic, because StrategySpec names a class that it imports late; the validator makes it a StrategySpec.
    strategy: Any = Field(default="none", validate_default=True, description="what tokentrim run --strategy takes")
    control: Control | None = Field(
        default=None, description="downscale: instead of a strategy, smaller pictures before the processor"
    )
    label: str = Field(default="", description="its name in tables; default: the strategy's name")
    match: Match | None = Field(
        default=None, description="which share budgets mean for it; fixed runs it once, as it is configured"
    )
    budgets: Shares | None = Field(default=None, description="default: the comparison's own")

    @field_validator("strategy", mode="plain")
    @classmethod
    def _build(cls, value: Any, info: ValidationInfo) -> StrategySpec:
        where = info.context if isinstance(info.context, Where) else Where()
        return strategy_from(value, where)

    @model_validator(mode="after")
    def _one_of_the_two(self) -> MethodSpec:
        if self.control is not None and "strategy" in self.model_fields_set:
            raise ValueError(
                complaint("a method", "be a strategy or a control", self.control, "list them as two methods")
            )
        if self.control is not None and self.match == "fixed":
            raise ValueError(
                complaint(f"control {self.control!r}", "have budgets to match", "fixed", "leave 'match' out")
            )
        if self.budgets is not None and self.as_configured:
            raise ValueError(
                complaint(f"budgets of {self.name!r}", "be left out, because it runs as it is configured",
                          list(self.budgets), "what is fixed, has no knob or a budget of its own runs once")
            )  # fmt: skip
        return self

    @model_validator(mode="after")
    def _own_label(self) -> MethodSpec:
        """What a label says must be so: tables, tests and pictures know controls and methods by their names."""
        if self.label != self.label.strip() or not self.label.isprintable():
            raise ValueError(complaint("a label", "be printable text without blanks around it", self.label))
        word = unicodedata.normalize("NFKC", self.label).casefold()
        if word in {*registry("strategy").names(), DOWNSCALE} - {self.control or self.chosen.strategy.name}:
            raise ValueError(
                complaint(f"the label {self.label!r}", f"be of the method {word!r}, whose name it is",
                          self.control or self.chosen.strategy.label(), "choose another label")
            )  # fmt: skip
        return self

    @property
    def as_configured(self) -> bool:
        """Whether it runs once, as it is: that is asked for, or there is no knob, or a budget of its own."""
        if self.match is not None or self.control is not None:
            return self.match == "fixed"
        strategy = self.chosen.strategy
        parts = [*strategy.spatial_parts, *([strategy.temporal_part] if strategy.temporal_part else [])]
        return self.chosen.budget is not None or all(part.budget_knob is None for part in (strategy, *parts))

    @property
    def chosen(self) -> StrategySpec:
        """The strategy, with a budget if it has one of its own."""
        return self.strategy

    @property
    def name(self) -> str:
        """Label in tables."""
        if self.control is not None:
            return self.label or self.control
        strategy = self.chosen.strategy
        return self.label or (strategy.name if strategy.name != "composition" else strategy.label())

    def spec(self) -> dict[str, Any]:
        """The strategy as a plain dict."""
        return self.chosen.as_dict()


class Budgets(Part):
    """The budgets that every method is brought to."""

    match: Share = Field(
        default="layer_mean_ratio",
        description="the share of the unpruned run that is made equal; prefill_time_ratio is measured",
    )
    values: Shares = Field(default=(0.5, 0.3, 0.2), description="shares in (0, 1]")


class CompareConfig(Part):
    """A whole comparison."""

    models: tuple[ModelSpec, ...] = Field(default=(ModelSpec(model="testbed"),), min_length=1)
    tasks: tuple[TaskSpec, ...] = Field(min_length=1, description="tasks to run, such as [where, list-all]")
    split: Split = "test"
    samples: int = Field(
        default=100, ge=1, le=MOST_QUESTIONS, description="questions of each task that does not say otherwise"
    )
    strategies: tuple[MethodSpec, ...] = Field(min_length=1, description="methods to compare, such as [random, fastv]")
    budgets: Budgets = Budgets()
    controls: tuple[str, ...] = Field(
        default=CONTROLS, description="rows that are added where 'strategies' does not list them"
    )
    text_only: bool = Field(
        default=True, description="also drop every visual token at each boundary where a method first prunes"
    )
    batch_size: int = Field(default=25, ge=1, description="questions answered at once")
    max_new_tokens: int | None = Field(default=None, ge=1, description="default: each task's own limit")
    seeds: tuple[int, ...] = Field(default=(0,), min_length=1, description="of the methods that draw random numbers")
    pictures: int = Field(default=1, ge=0, description="questions per task whose kept tokens are recorded for kept.png")
    correction: Correction = Field(default="holm", description="of p values for the number of comparisons")
    executor: Executor | None = Field(default=None, description="where cells are run: ray, {name: local, workers: 2}")
    timing: Timing | None = Field(default=Timing(), description="the timing pass; false leaves it out")

    @field_validator("timing", mode="before", json_schema_input_type=Timing | bool | None)
    @classmethod
    def _on_or_off(cls, value: Any) -> Any:
        return {True: Timing(), False: None}[value] if isinstance(value, bool) else value

    @field_validator("controls")
    @classmethod
    def _known(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for name in value:
            if name != DOWNSCALE:
                registry("strategy").entry(name)
        return value

    @field_validator("executor", mode="plain", json_schema_input_type=str | dict[str, Any] | None)
    @classmethod
    def _chosen(cls, value: Any, info: ValidationInfo) -> Executor | None:
        where = info.context if isinstance(info.context, Where) else Where()
        return None if value is None else executor_from(value, where)

    @field_validator("seeds")
    @classmethod
    def _each_once(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if len(set(value)) < len(value):
            raise ValueError(complaint("seeds", "differ", list(value), "list each once"))
        return value

    @model_validator(mode="after")
    def _distinct(self) -> CompareConfig:
        for what, names in (
            ("strategies", [method.name for method in self.strategies]),
            ("tasks", [task.task for task in self.tasks]),
            ("models", [model.model for model in self.models]),
        ):
            twice = [name for name, times in Counter(names).items() if times > 1]
            if twice:
                hint = "give each a label of its own" if what == "strategies" else "list each once"
                raise ValueError(complaint(f"names in {what}", "differ", twice, hint))
        self._asked()  # budgets of different methods are beside each other, too
        return self

    @property
    def methods(self) -> tuple[MethodSpec, ...]:
        """All methods: the listed ones, and in front of them the unpruned run and the controls that they lack."""
        listed = {method.name for method in self.strategies}
        added = [name for name in ("none", *self.controls) if name not in listed]
        rows = [*(_added(name, self._asked()) for name in added), *self.strategies]
        return tuple(sorted(rows, key=lambda method: method.name != "none"))

    def _asked(self) -> tuple[float, ...]:
        """Every budget that some method is brought to, so that controls stand beside each."""
        own = {share for method in self.strategies for share in method.budgets or ()}
        return _checked_shares(tuple({*self.budgets.values, *own}))

    def to_dict(self) -> dict[str, Any]:
        """Plain data that :func:`load_compare` reads back: every file and name resolved."""
        data = self.model_dump(mode="json", exclude={"strategies", "executor"})  # where cells run changes none
        methods = [
            {
                **({"strategy": method.spec()} if method.control is None else {"control": method.control}),
                "label": method.name,
                "match": method.match,
                "budgets": None if method.budgets is None else list(method.budgets),
            }
            for method in self.strategies
        ]
        return {**data, "strategies": methods}

    @property
    def hash(self) -> str:
        """What makes two configurations the same."""
        return digest(self.to_dict())


def is_comparison(data: object) -> bool:
    """Whether what a YAML file holds is meant as a comparison rather than as a configuration."""
    return isinstance(data, Mapping) and bool({"tasks", "strategies", "models", "budgets"} & set(data))


def load_compare(source: str | Path | Mapping[str, Any] | CompareConfig | None = None) -> CompareConfig:
    """Read a comparison.

    Args:
        source: a YAML file, YAML text, a mapping, or None for the one that comes with tokentrim.

    Raises:
        ConfigError: when it is malformed; names file, line and path, and suggests the nearest name.
        UnknownNameError: when a task, strategy or model is not registered.
    """
    if isinstance(source, CompareConfig):
        return source
    if isinstance(source, Mapping):
        data, where = source, Where()
    else:
        document = usual_comparison() if source is None else load_yaml(source)
        data, where = document.data, document.where
    if not isinstance(data, Mapping):
        raise where.error(complaint(_WHOM, "be a mapping of keys to values", data, "such as {tasks: [where], ...}"))
    values: dict[Any, Any] = dict(data)
    for key, part in (("models", ModelSpec), ("tasks", TaskSpec), ("strategies", MethodSpec)):
        if key in values:
            values[key] = _parts(values[key], part, where.at(key))
    if isinstance(values.get("budgets"), list):
        values["budgets"] = {"values": values["budgets"]}
    return check(CompareConfig, values, _WHOM, where, context=where.at("executor"))


def _parts(listed: Any, part: type[Part], where: Where) -> tuple[Part, ...]:
    """The parts of one list, each checked at its own place; a single one needs no list."""
    if not isinstance(listed, list | tuple):
        listed = [listed]
    return tuple(_part(item, part, where.at(index)) for index, item in enumerate(listed))


def _part(item: Any, part: type[Part], where: Where) -> Part:
    """One part from its short or its long form."""
    if isinstance(item, part):
        return item
    key = part.shorthand
    if part is MethodSpec and (item == DOWNSCALE or (isinstance(item, Mapping) and "control" in item)):
        return check(part, {"control": item} if item == DOWNSCALE else item, f"{part.whom} of {_WHOM}", where)
    # A mapping without the first key is that key's value, written in place: {name: fastv, k: 2}.
    short = not isinstance(item, Mapping) or (part is MethodSpec and key not in item)
    values: dict[Any, Any] = {key: item} if short else dict(item)
    place = where if short else where.at(key)
    return check(part, values, f"{part.whom} of {_WHOM}", where, context=place)


def _added(name: str, budgets: tuple[float, ...]) -> MethodSpec:
    """The row of a control that nobody listed."""
    if name == DOWNSCALE:
        return MethodSpec(control=name, budgets=budgets)
    row = MethodSpec(strategy=strategy_from(name))
    return row if row.as_configured else row.model_copy(update={"budgets": budgets})
