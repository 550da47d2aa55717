"""JSON schemas of what users write in YAML: the registered strategies as a union that ``name`` tells apart.

Those of the built-ins lie in ``tokentrim/schemas``, where the headers of shipped files point.
"""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any, Final

from pydantic.json_schema import models_json_schema

import tokentrim
from tokentrim.config.specs import Budget, TrimConfig
from tokentrim.errors import PluginError
from tokentrim.plugins.loader import registry

SHIPPED: Final = Path(tokentrim.__file__).parent / "schemas"
"""Folder of the schemas of the built-ins, a file for each of ``SCHEMAS``."""
_DRAFT: Final = "https://json-schema.org/draft/2020-12/schema"
_REFERENCE: Final = "#/$defs/{model}"
_STRATEGY: Final[dict[str, Any]] = {"$ref": "#/$defs/strategy"}


def build_schema() -> dict[str, Any]:
    """The schema of a configuration file. A strategy that cannot be imported is left out."""
    return _whole("configuration", {"anyOf": [_config(), _STRATEGY], "$defs": _strategies()})


def build_compare_schema() -> dict[str, Any]:
    """The schema of a comparison's file. A strategy that cannot be imported is left out."""
    from tokentrim.compare.config import CompareConfig
    from tokentrim.runs.specs import DOWNSCALE

    described = CompareConfig.model_json_schema(ref_template=_REFERENCE)
    definitions: dict[str, Any] = {**_strategies(), **described.pop("$defs", {})}
    method = definitions["MethodSpec"]
    method["properties"] = {**method["properties"], "strategy": _STRATEGY}
    method["oneOf"] = [{"required": ["strategy"]}, {"required": ["control"]}]
    # What load_compare takes beside the full forms: a word for a model or task, a strategy in place of a method, one
    # thing for a list of one, and the values of the budgets alone.
    families = [
        {"pattern": f"^(?:{entry.tags['pattern']})$" if "pattern" in entry.tags else f"^{entry.name}:"}
        for entry in registry("task").families()
    ]
    definitions["task"] = {"type": "string", "anyOf": [{"enum": list(registry("task").names())}, *families]}
    task = definitions["TaskSpec"]
    task["properties"] = {**task["properties"], "task": {"$ref": "#/$defs/task"}}
    properties = described["properties"]
    for key, part, short in (
        ("models", "ModelSpec", {"type": "string"}),
        ("tasks", "TaskSpec", {"$ref": "#/$defs/task"}),
        ("strategies", "MethodSpec", {"anyOf": [{"const": DOWNSCALE}, _STRATEGY]}),
    ):
        item = {"anyOf": [short, {"$ref": _REFERENCE.format(model=part)}]}
        several = {"type": "array", "items": item, "minItems": 1}
        said = {"description": properties[key]["description"]} if "description" in properties[key] else {}
        properties[key] = {**said, "anyOf": [several, item]}
    values = definitions["Budgets"]["properties"]["values"]
    properties["budgets"] = {"anyOf": [{"$ref": _REFERENCE.format(model="Budgets")}, values]}
    return _whole("comparison", {**described, "$defs": definitions})


def build_schedule_schema() -> dict[str, Any]:
    """The schema of a schedule file, which a calibration writes."""
    from tokentrim.config.schedule_file import ScheduleFile

    return _whole("schedule", ScheduleFile.model_json_schema(ref_template=_REFERENCE))


SCHEMAS: Final = {"config": build_schema, "compare": build_compare_schema, "schedule": build_schedule_schema}
"""The kinds of files that users write or keep, and what builds the schema of each."""


def _whole(what: str, schema: dict[str, Any]) -> dict[str, Any]:
    """A schema with its head; without the titles that pydantic makes of field names."""
    return {"$schema": _DRAFT, "title": f"tokentrim {what}", **_untitled({**schema, "title": ""})}


def _untitled(schema: Any) -> Any:
    """A schema without titles; a property may be called title."""
    if isinstance(schema, list):
        return [_untitled(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    kept = {key: value for key, value in schema.items() if key != "title"}
    return {
        key: {name: _untitled(item) for name, item in value.items()}
        if key in ("properties", "$defs")
        else _untitled(value)
        for key, value in kept.items()
    }


def _strategies() -> dict[str, Any]:
    """Definitions of every strategy and part, and of ``strategy``, which is any form of one."""
    classes: dict[str, Any] = {}
    for entry in registry("strategy"):
        try:
            classes[entry.name] = registry("strategy").get(entry.name)
        except PluginError:  # `tokentrim plugins`, `tokentrim doctor` and asking for the name report it
            continue
    models = [(model, "validation") for model in (*classes.values(), Budget)]
    references, shared = models_json_schema(models, ref_template=_REFERENCE)  # type: ignore[arg-type]
    definitions: dict[str, Any] = dict(shared.get("$defs", {}))
    budget = references[Budget, "validation"]
    for name, model in classes.items():
        key = str(references[model, "validation"]["$ref"]).rsplit("/", 1)[-1]
        described = {**definitions.pop(key), "description": inspect.cleandoc(model.__doc__ or "").split("\n\n")[0]}
        definitions[f"part-{name}"] = _named(described, name)
        definitions[f"strategy-{name}"] = _named(described, name, budget)
    definitions["part"] = _union("part", classes)
    definitions["composition"] = _composition(classes, budget)
    definitions["strategy"] = {"anyOf": [_union("strategy", classes), {"$ref": "#/$defs/composition"}, _word(classes)]}
    return definitions


def _config() -> dict[str, Any]:
    """A mapping with the key ``strategy`` and the other fields of a configuration."""
    fields = TrimConfig.model_json_schema()
    properties = {**fields["properties"], "strategy": _STRATEGY}
    return {
        "type": "object",
        "properties": properties,
        "required": ["strategy"],
        "additionalProperties": False,
    }


def _named(described: dict[str, Any], name: str, budget: dict[str, Any] | None = None) -> dict[str, Any]:
    """A strategy's own schema, told apart by ``name``, with a budget where one may stand."""
    properties = {"name": {"const": name, "type": "string"}, **described.get("properties", {})}
    if budget is not None:
        properties["budget"] = budget
    return {**described, "properties": properties, "required": ["name", *described.get("required", [])]}


def _union(prefix: str, names: dict[str, Any]) -> dict[str, Any]:
    """One of the named schemas."""
    targets = {name: f"#/$defs/{prefix}-{name}" for name in names}
    return {
        "oneOf": [{"$ref": target} for target in targets.values()],
        "discriminator": {"propertyName": "name", "mapping": targets},
    }


def _word(names: dict[str, Any]) -> dict[str, Any]:
    """A registered name alone, or the name of a YAML file."""
    return {"type": "string", "anyOf": [{"enum": list(names)}, {"pattern": r"\.[Yy][Aa]?[Mm][Ll]$"}]}


def _composition(names: dict[str, Any], budget: dict[str, Any]) -> dict[str, Any]:
    """Spatial parts and a temporal part."""
    part = {"anyOf": [{"$ref": "#/$defs/part"}, {"enum": list(names)}]}
    return {
        "type": "object",
        "properties": {
            "spatial": {"anyOf": [part, {"type": "array", "items": part}]},
            "temporal": part,
            "budget": budget,
        },
        "anyOf": [{"required": ["spatial"]}, {"required": ["temporal"]}],
        "additionalProperties": False,
    }
