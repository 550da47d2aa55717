"""From what a user writes to an executor: a name, a mapping with options, or options on a command line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, TypeAlias

from tokentrim.config.specs import load_yaml
from tokentrim.config.validation import check
from tokentrim.config.yaml_reader import Where
from tokentrim.errors import ConfigError, TokentrimError, complaint
from tokentrim.executors.base import Executor
from tokentrim.plugins.loader import registry

DEFAULT: Final = "local"
Source: TypeAlias = "str | Mapping[str, Any] | Executor"


def executor_from(source: Source, where: Where = Where()) -> Executor:  # noqa: B008  # immutable
    """An executor from its name, or from a mapping of its name and options.

    Args:
        source: ``"ray"`` or ``{"name": "ray", "num_gpus": 1}``.
        where: its place in a configuration.

    Raises:
        UnknownNameError: when no executor of that name is registered; suggests the nearest.
        ConfigError: when an option is unknown or wrong.
    """
    if isinstance(source, Executor):
        return source
    values: dict[str, Any] = {"name": source} if isinstance(source, str) else _mapping(source, where)
    name = values.pop("name", None)
    if not isinstance(name, str):
        raise where.error(complaint("an executor", "have a name", name, "such as {name: local, workers: 2}"))
    try:
        kind = registry("executor").get(name)
    except TokentrimError as error:
        place = str(where)
        raise type(error)(f"{place}: {error}" if place else str(error)) from error
    return check(kind, values, f"executor {name!r}", where)


def _mapping(source: object, where: Where) -> dict[str, Any]:
    if not isinstance(source, Mapping):
        raise where.error(complaint("an executor", "be a name or a mapping with the key 'name'", source))
    return dict(source)


def choose(given: Source | None, configured: Executor | None) -> Executor:
    """The executor of a run.

    Args:
        given: what the caller asks for. A mapping without a name changes options of the configured one.
        configured: the one of the configuration file.

    Raises:
        UnknownNameError: as :func:`executor_from`.
        ConfigError: as :func:`executor_from`.
    """
    if isinstance(given, Executor):
        return given
    before: dict[str, Any] = {"name": DEFAULT} if configured is None else configured.spec()
    asked: dict[str, Any] = {"name": given} if isinstance(given, str) else dict(given or {})
    same = asked.get("name", before["name"]) == before["name"]
    return executor_from({**before, **asked} if same else asked)


def parse_options(name: str | None, options: Sequence[str]) -> dict[str, Any] | None:
    """What :func:`choose` takes, from a command line.

    Args:
        name: of the executor, where one was given.
        options: texts ``KEY=VALUE``; values are read as YAML.

    Raises:
        ConfigError: when an option has another form.
    """
    found: dict[str, Any] = {} if name is None else {"name": name}
    for option in options:
        key, equals, value = option.partition("=")
        if not equals or not key.isidentifier() or key == "name":
            raise ConfigError(
                complaint("--executor-option", "read KEY=VALUE", option, "such as --executor-option num_gpus=1")
            )
        data: Any = load_yaml(f"{key}: {value}").data
        found[key] = data[key]
    return found or None
