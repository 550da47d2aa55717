"""YAML in, with the line of every value, without YAML 1.1's traps.

Scalars follow YAML 1.2's core schema: ``1e-4`` is a number; ``no``, ``off``, ``1:30`` and dates are text; only
``true`` and ``false`` are booleans. A key given twice is an error.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import yaml

from tokentrim.errors import ConfigError, complaint

Key = str | int
KeyPath = tuple[Key, ...]

_SUFFIXES: Final = (".yaml", ".yml")
_COLON: Final = re.compile(r":(\s|$)")


@dataclass(frozen=True)
class Where:
    """A place in a configuration, for messages.

    Attributes:
        source: file name, ``"inline YAML"``, or "" for a dict.
        path: keys from the top down to the place.
        lines: path -> line (1-based) of the whole source.
        through: sources that led to this one by naming it.
    """

    source: str = ""
    path: KeyPath = ()
    lines: Mapping[KeyPath, int] = field(default_factory=dict[KeyPath, int], repr=False)
    through: tuple[str, ...] = ()

    def at(self, *keys: Key) -> Where:
        """A place below this one."""
        return replace(self, path=(*self.path, *keys))

    def reached_from(self, around: Where) -> Where:
        """This place, as the place ``around`` led to it.

        Raises:
            ConfigError: when files name each other in a circle.
        """
        through = (*around.through, around.source)
        if self.source in through and is_file(self.source):
            raise around.error(
                complaint("a configuration file", "not name itself, also not through others", self.source)
            )
        return replace(self, through=through)

    def line(self) -> int | None:
        """Line of the place, or of the innermost thing around it that has one."""
        for length in range(len(self.path), -1, -1):
            if self.path[:length] in self.lines:
                return self.lines[self.path[:length]]
        return None

    def __str__(self) -> str:
        """``file.yaml:4, strategy.spatial[0].k``; empty for a dict's own keys, which messages name anyway."""
        if not self.source and len(self.path) < 2:
            return ""
        path = "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in self.path).lstrip(".")
        line = self.line()
        source = f"{self.source}:{line}" if self.source and line is not None else self.source
        return ", ".join(part for part in (source, path) if part)

    def error(self, message: str) -> ConfigError:
        """A ConfigError that begins with this place."""
        place = str(self)
        return ConfigError(f"{place}: {message}" if place else message)


@dataclass(frozen=True)
class Document:
    """What a YAML source says, and where."""

    data: Any
    where: Where


class _Loader(yaml.SafeLoader):
    """SafeLoader with YAML 1.2's idea of what an unquoted word means."""

    # The parent's table is YAML 1.1's; a class attribute of our own keeps the parent's as it is.
    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012  # pyyaml's own protocol


for _tag, _pattern, _first in (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?(0|[1-9][0-9]*)", list("-+0123456789")),
    (
        "float",
        r"[-+]?((\.[0-9]+|[0-9]+\.[0-9]*)([eE][-+]?[0-9]+)?|[0-9]+[eE][-+]?[0-9]+|\.(inf|Inf|INF))|\.(nan|NaN|NAN)",
        list("-+.0123456789"),
    ),
    ("merge", r"<<", ["<"]),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(rf"^({_pattern})$"), _first)


def is_inline(text: str) -> bool:
    """Whether a text can only be YAML: it opens a mapping, has several lines, or has a key's colon."""
    return text.lstrip().startswith("{") or "\n" in text.strip() or _COLON.search(text) is not None


def is_file(text: str) -> bool:
    """Whether a text is meant as the name of a YAML file."""
    return not is_inline(text) and text.lower().endswith(_SUFFIXES)


def load_yaml(source: str | Path) -> Document:
    """Read a YAML file, or YAML text.

    Args:
        source: a path; or text, which is a file's name when it ends in .yaml or .yml and YAML otherwise.

    Raises:
        ConfigError: when the file cannot be read, the YAML is malformed, or a key is given twice.
    """
    if isinstance(source, str) and not is_file(source):
        return _parse(source, "inline YAML")
    path = Path(source)
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as cause:
        near = sorted(str(other) for other in path.parent.glob("*.y*ml"))[:8]
        hint = f"YAML files in {path.parent}: {', '.join(near)}" if near else "check the path"
        raise ConfigError(complaint("the configuration file", "exist", str(path), hint)) from cause
    except (OSError, UnicodeDecodeError) as cause:
        raise ConfigError(
            complaint("the configuration file", "be readable UTF-8 text", str(path), str(cause))
        ) from cause
    return _parse(text, str(path))


def _parse(text: str, source: str) -> Document:
    """The data of a YAML text and the line of each of its values."""
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        lines: dict[KeyPath, int] = {}
        if node is not None:
            _walk(node, (), lines, source, ())
        data: Any = None if node is None else loader.construct_document(node)
    except yaml.MarkedYAMLError as cause:
        mark = cause.problem_mark or cause.context_mark
        line = "" if mark is None else f":{mark.line + 1}"
        problem = ", ".join(part for part in (cause.context, cause.problem) if part)
        raise ConfigError(complaint(f"{source}{line}: the text", "be well-formed YAML", hint=problem)) from cause
    except yaml.YAMLError as cause:
        raise ConfigError(complaint(f"{source}: the text", "be well-formed YAML", hint=str(cause))) from cause
    finally:
        loader.dispose()
    return Document(data, Where(source, (), lines))


def _walk(node: yaml.Node, path: KeyPath, lines: dict[KeyPath, int], source: str, around: tuple[int, ...]) -> None:
    """Note the line of every value below ``node``, and refuse repeated keys, odd keys and self-reference."""
    lines.setdefault(path, node.start_mark.line + 1)
    where = Where(source, path, lines)
    if id(node) in around:
        raise where.error(complaint("an anchor", "not contain itself"))
    around = (*around, id(node))
    if isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            _walk(item, (*path, index), lines, source, around)
    if not isinstance(node, yaml.MappingNode):
        return
    first_lines: dict[str, int] = {}
    for key, value in node.value:
        line = key.start_mark.line + 1
        if not isinstance(key, yaml.ScalarNode):
            raise where.error(
                complaint(f"a key in line {line}", "be plain text", hint="a list or mapping cannot be a key")
            )
        if key.tag == "tag:yaml.org,2002:merge":
            _walk(value, path, {**lines}, source, around)
            continue
        lines[(*path, key.value)] = line
        if key.value in first_lines:
            both = f"it stands in line {first_lines[key.value]} and again in line {line}: remove one"
            raise where.at(key.value).error(complaint(f"the key {key.value!r}", "be given once", hint=both))
        first_lines[key.value] = line
        _walk(value, (*path, key.value), lines, source, around)
