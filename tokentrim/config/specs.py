"""Configuration: from a name, a dict, YAML or an object to a strategy, with errors that say where and what to do.

A specification of a strategy is any of: a registered name (``"fastv"``); a mapping ``{name: fastv, k: 2}``; a
composition ``{spatial: {...} or [...], temporal: {...}}``; each with an optional ``budget``; a YAML file or YAML text
that holds one of these, bare or under the key ``strategy``; a :class:`TrimConfig`; or a strategy object.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias, cast, get_args

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationInfo,
    field_serializer,
    field_validator,
    model_validator,
)

from tokentrim.config.validation import check
from tokentrim.config.yaml_reader import Document, Where, is_file, is_inline, load_yaml
from tokentrim.contracts.compose import compose
from tokentrim.contracts.load_options import LoadOptions
from tokentrim.contracts.strategy import Strategy
from tokentrim.counting.shape import ModelShape
from tokentrim.errors import ConfigError, TokentrimError, complaint, suggestion
from tokentrim.plugins.loader import registry

__all__ = ["Budget", "Document", "Spec", "StrategySpec", "TrimConfig", "Where", "load_config", "load_yaml", "resolve",
           "strategy_from", "with_parameters"]  # fmt: skip

Measure: TypeAlias = Literal["layer_mean_ratio", "kv_ratio", "kv_read_ratio", "flops_ratio"]
Ratio: TypeAlias = float | None
Structure: TypeAlias = Literal["keep", "prune"]
_COMPOSITION: Final = ("spatial", "temporal")


class Budget(BaseModel):
    """A budget to solve a strategy's knob for: exactly one share of the unpruned run."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    layer_mean_ratio: Ratio = Field(default=None, gt=0, le=1, description="share of the layer-mean visual tokens")
    kv_ratio: Ratio = Field(default=None, gt=0, le=1, description="share of the visual KV entries, mean over decoding")
    kv_read_ratio: Ratio = Field(
        default=None, gt=0, le=1, description="share of the visual KV entries that attention sees, mean over decoding"
    )
    flops_ratio: Ratio = Field(default=None, gt=0, le=1, description="share of the prefill FLOPs")

    @model_validator(mode="after")
    def _exactly_one(self) -> Budget:
        given = sorted(self.model_fields_set)
        if len(self.ratios) != 1:
            raise ValueError(complaint("a budget", f"set exactly one of {', '.join(Budget.model_fields)}", given))
        return self

    @property
    def ratios(self) -> dict[str, float]:
        """The one ratio that is set, by its name."""
        return {key: value for key, value in self if value is not None}


@dataclass(frozen=True)
class StrategySpec:
    """A strategy, and the budget that its knob is still to be solved for."""

    strategy: Strategy
    budget: Budget | None = None
    structure: Structure | None = None
    """What becomes of placeholders that are structure (line ends), where the configuration says so."""

    def as_dict(self) -> dict[str, Any]:
        """A plain dict that :func:`strategy_from` reads back.

        Raises:
            ConfigError: when line ends are to be pruned, which is no part of a strategy.
        """
        if self.structure == "prune":
            raise ConfigError(
                complaint("structure", "be keep here: it is an option of trim, run and plan, not of a strategy",
                          "prune", "take it out of the strategy's file")
            )  # fmt: skip
        budget = {} if self.budget is None else {"budget": self.budget.ratios}
        return {**self.strategy.spec(), **budget}


class TrimConfig(LoadOptions):
    """A configuration file: what to do with which model, and how that is loaded."""

    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True)

    strategy: Any = Field(description="the strategy: a name, a mapping, or a YAML file")
    model: str | None = Field(
        default=None,
        description="a registered model, a folder, or an id of the hub, owner/name[@revision]; default: the testbed",
    )
    structure: Structure | None = Field(
        default=None, description="line ends among the placeholders: keep (default), or prune them like visual tokens"
    )

    @property
    def chosen(self) -> StrategySpec:
        """The strategy, with what the configuration says of structure."""
        spec: StrategySpec = self.strategy
        return spec if self.structure is None else replace(spec, structure=self.structure)

    @field_validator("strategy", mode="plain")
    @classmethod
    def _build(cls, value: Any, info: ValidationInfo) -> StrategySpec:
        where = info.context if isinstance(info.context, Where) else Where()
        return strategy_from(value, where.at("strategy"))

    @field_serializer("strategy")
    def _dump(self, value: StrategySpec) -> dict[str, Any]:
        return value.as_dict()


Spec: TypeAlias = "str | Path | Mapping[str, Any] | TrimConfig | StrategySpec | Strategy"


def strategy_from(spec: Spec, where: Where = Where()) -> StrategySpec:  # noqa: B008  # immutable
    """The strategy that a specification means, with its budget if it has one.

    Args:
        spec: see the module's text.
        where: the place of the specification in its source, for messages.

    Raises:
        ConfigError: when the specification is malformed; names file, line and path, and suggests the nearest name.
        UnknownNameError: when no strategy has that name.
        PluginError: when the strategy's plugin is broken.
    """
    if isinstance(spec, Strategy):
        return StrategySpec(spec)
    if isinstance(spec, StrategySpec):
        return spec
    if isinstance(spec, TrimConfig):
        return spec.chosen
    if isinstance(spec, Path):
        return _from_document(load_yaml(where.near(spec)), where)
    if isinstance(spec, str):
        return _from_text(spec, where)
    if isinstance(spec, Mapping):
        return _from_mapping(dict(spec), where)
    raise where.error(
        complaint("a strategy", "be a name, a mapping, YAML, a file, a TrimConfig or a strategy object", spec,
                  _class_hint(spec))
    )  # fmt: skip


def with_parameters(spec: Spec, parameters: Mapping[str, Any]) -> Spec:
    """A registered strategy with some of its parameters set, or its budget.

    Args:
        spec: its name; without parameters, any specification, which is returned as it is.
        parameters: by name.

    Raises:
        ConfigError: when it is no name, or has no such parameter; names those that it has.
        UnknownNameError: when no strategy has that name.
    """
    if not parameters:
        return spec
    if not isinstance(spec, str) or is_inline(spec) or is_file(spec):
        raise ConfigError(
            complaint(f"a strategy with {', '.join(parameters)} beside it", "be a registered name", spec,
                      "such as trim(model, 'fastv', keep_ratio=0.2); or write the parameters into the strategy itself")
        )  # fmt: skip
    return strategy_from({"name": spec, **parameters})


def load_config(source: str | Path) -> TrimConfig:
    """Read a configuration from a YAML file or YAML text.

    A file that holds a bare strategy is a configuration of that strategy.

    Raises:
        ConfigError: when it is malformed; names file, line and path, and suggests the nearest name.
    """
    document = load_yaml(source)
    if _is_config(document.data):
        return check(TrimConfig, document.data, "the configuration", document.where, context=document.where)
    return TrimConfig(strategy=_from_document(document, Where()))


def resolve(spec: Spec, shape: ModelShape, n_visual: int) -> Strategy:
    """The strategy of a specification, its knob solved for the budget if the specification has one.

    Args:
        spec: see the module's text.
        shape: the model's numbers.
        n_visual: visual tokens of the prompt.
    """
    found = strategy_from(spec)
    if found.budget is None:
        return found.strategy
    strategy, _ = found.strategy.at_budget(shape, n_visual, **found.budget.model_dump())
    return strategy


def _from_text(text: str, where: Where) -> StrategySpec:
    """A strategy from a name, a file's name, or inline YAML, in this order."""
    strategies = registry("strategy")
    if text in strategies:
        return _from_mapping({"name": text}, where)
    if is_inline(text):
        return _from_document(load_yaml(text), where)
    file = where.near(text)
    if is_file(text) or os.path.isfile(file):
        return _from_document(load_yaml(file), where)
    return StrategySpec(_build_named({"name": text}, where))


def _from_document(document: Document, around: Where) -> StrategySpec:
    """The strategy of a YAML document, bare or under the key ``strategy``."""
    data, where = document.data, document.where.reached_from(around)
    if _is_config(data):
        return check(TrimConfig, data, "the configuration", where, context=where).chosen
    if isinstance(data, str) and data in registry("strategy"):
        return _from_mapping({"name": data}, where)
    if not isinstance(data, Mapping):
        raise where.error(
            complaint(
                "a strategy",
                "be a mapping with the key 'name', 'spatial' or 'temporal'",
                data,
                "write {name: st3}",
            )
        )
    return _from_mapping(dict(data), where)


def _is_config(data: Any) -> bool:
    """Whether a document is a configuration rather than a bare strategy."""
    return isinstance(data, Mapping) and ("strategy" in data or "model" in data)


def _from_mapping(values: dict[Any, Any], where: Where) -> StrategySpec:
    """A strategy from ``{name: ...}`` or ``{spatial: ..., temporal: ...}``, with an optional budget."""
    given = values.pop("budget", None)
    budget = None if given is None else check(Budget, given, "the budget", where.at("budget"))
    if "name" in values:
        return StrategySpec(_build_named(values, where), budget)
    if not any(key in values for key in _COMPOSITION):
        hint = suggestion(str(next(iter(values), "")), ("name", *_COMPOSITION))
        raise where.error(
            complaint("a strategy", "have the key 'name', 'spatial' or 'temporal'", sorted(map(str, values)), hint)
        )
    for key in values:
        if key not in _COMPOSITION:
            hint = suggestion(str(key), (*_COMPOSITION, "budget"))
            raise where.at(key).error(complaint("each key of a composed strategy", "be a known one", key, hint))
    return StrategySpec(_compose(values, where), budget)


def _compose(values: Mapping[Any, Any], where: Where) -> Strategy:
    """One strategy from spatial parts and a temporal part."""
    spatial, temporal = values.get("spatial"), values.get("temporal")
    below = where.at("spatial")
    if isinstance(spatial, list):
        placed = [(part, below.at(index)) for index, part in enumerate(cast("list[Any]", spatial))]
    else:
        placed = [] if spatial is None else [(spatial, below)]
    if temporal is not None:
        placed.append((temporal, where.at("temporal")))
    parts: list[Strategy] = []
    problems: list[str] = []
    for part, place in placed:
        try:
            parts.append(_part(part, place))
        except ConfigError as error:  # so that one run shows what is wrong in every part
            problems.append(str(error))
    if problems:
        raise ConfigError("\n".join(problems))
    last = None if temporal is None else parts.pop()
    try:
        return compose(tuple(parts), last)
    except TokentrimError as error:
        raise where.error(str(error)) from error


def _part(value: Any, where: Where) -> Strategy:
    """One part of a composition: a name, or a mapping with a name."""
    values: Any = {"name": value} if isinstance(value, str) else value
    if not isinstance(values, Mapping) or "name" not in values:
        raise where.error(complaint("a part of a strategy", "be a name or a mapping with the key 'name'", value))
    if "budget" in values:
        raise where.at("budget").error(
            complaint("a budget", "be set on the whole strategy", hint="move it beside 'spatial' and 'temporal'")
        )
    return _build_named(dict(values), where)


def _build_named(values: dict[Any, Any], where: Where) -> Strategy:
    """The registered strategy ``name``, with the other keys as its parameters."""
    name = values.pop("name")
    place = where.at("name")
    if not isinstance(name, str):
        raise place.error(complaint("the name of a strategy", "be text", name))
    strategies = registry("strategy")
    if name not in strategies and str(place):
        # The registry's own message, with the place in front.
        try:
            strategies.entry(name)
        except TokentrimError as error:
            raise type(error)(f"{place}: {error}") from error
    found = strategies.get(name)
    return check(found, _paths_near(found, values, where), f"strategy {name!r}", where)


def _paths_near(strategy: type[Strategy], values: Mapping[Any, Any], where: Where) -> dict[Any, Any]:
    """Parameters with the files among them as they are meant in a configuration file: beside it, if they are there."""

    def near(key: Any, value: Any) -> Any:
        field = strategy.model_fields.get(key)
        is_path = field is not None and Path in (field.annotation, *get_args(field.annotation))
        return where.near(value) if is_path and isinstance(value, str) else value

    return {key: near(key, value) for key, value in values.items()}


def _class_hint(spec: object) -> str:
    """What to do when a class is given where an object is meant."""
    return f"call the class: {spec.__name__}(...)" if isinstance(spec, type) else ""
