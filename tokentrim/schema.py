"""JSON schema of a configuration: the registered strategies as a union that ``name`` tells apart."""

from __future__ import annotations

from typing import Any, Final

from pydantic.json_schema import models_json_schema

from tokentrim.config import Budget, TrimConfig
from tokentrim.errors import PluginError
from tokentrim.plugins import registry

_DRAFT: Final = "https://json-schema.org/draft/2020-12/schema"


def build_schema() -> dict[str, Any]:
    """The schema of a configuration file. A strategy that cannot be imported is left out."""
    classes: dict[str, Any] = {}
    for entry in registry("strategy"):
        try:
            classes[entry.name] = registry("strategy").get(entry.name)
        except PluginError:  # `tokentrim doctor` and asking for the name report it
            continue
    models = [(model, "validation") for model in (*classes.values(), Budget)]
    references, shared = models_json_schema(models, ref_template="#/$defs/{model}")  # type: ignore[arg-type]
    definitions: dict[str, Any] = dict(shared.get("$defs", {}))
    budget = references[Budget, "validation"]
    for name, model in classes.items():
        key = str(references[model, "validation"]["$ref"]).rsplit("/", 1)[-1]
        described = definitions.pop(key)
        definitions[f"part-{name}"] = _named(described, name)
        definitions[f"strategy-{name}"] = _named(described, name, budget)
    definitions["part"] = _union("part", classes)
    definitions["composition"] = _composition(budget)
    definitions["strategy"] = {"anyOf": [_union("strategy", classes), {"$ref": "#/$defs/composition"}, _word(classes)]}
    return {
        "$schema": _DRAFT,
        "title": "tokentrim configuration",
        "anyOf": [_config(), {"$ref": "#/$defs/strategy"}],
        "$defs": definitions,
    }


def _config() -> dict[str, Any]:
    """A mapping with the key ``strategy`` and the other fields of a configuration."""
    fields = TrimConfig.model_json_schema()
    properties = {**fields["properties"], "strategy": {"$ref": "#/$defs/strategy"}}
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


def _composition(budget: dict[str, Any]) -> dict[str, Any]:
    """Spatial parts and a temporal part."""
    part = {"anyOf": [{"$ref": "#/$defs/part"}, {"type": "string"}]}
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
