"""YAML in, with the line of every value, without YAML 1.1's traps.

Scalars follow YAML 1.2's core schema: ``1e-4`` is a number; ``no``, ``off``, ``1:30`` and dates are text; only
``true`` and ``false`` are booleans. A key given twice is an error, and so is what no configuration needs: aliases that
multiply, deep nesting, numbers beyond 64 bits, keys that are neither text nor whole numbers, files without an end.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import yaml

from tokentrim.errors import ConfigError, complaint
from tokentrim.reading import utf8

Key = str | int
KeyPath = tuple[Key, ...]

_SUFFIXES: Final = (".yaml", ".yml")
_COLON: Final = re.compile(r":(\s|$)")
_MOST_BYTES: Final = 1 << 18
_MOST_VALUES: Final = 100_000  # with every alias written out
_DEEPEST: Final = 50
_LONGEST_WAY: Final = 16  # of files that name each other
_LARGEST: Final = 1 << 63
_MOST_DIGITS: Final = 80  # in base 2, with a sign
_PREFIX: Final = "tag:yaml.org,2002:"
_TOO_DEEP: Final = complaint("a configuration", f"be nested at most {_DEEPEST} levels deep")
_TAGS: Final = frozenset(f"{_PREFIX}{name}" for name in ("map", "seq", "str", "int", "float", "bool", "null", "merge"))


@dataclass(frozen=True)
class Where:
    """A place in a configuration, for messages.

    Attributes:
        source: file name, ``"inline YAML"``, or "" for a dict.
        path: keys from the top down to the place.
        lines: path -> line (1-based) of the whole source.
        through: resolved paths of the files that led to this one by naming it.
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
        here = [os.path.realpath(around.source)] if os.path.isfile(around.source) else []
        through = (*around.through, *here)
        if os.path.realpath(self.source) in through:
            raise around.error(
                complaint("a configuration file", "not name itself, also not through others", self.source)
            )
        if len(through) > _LONGEST_WAY:
            raise around.error(complaint("a configuration", f"lie behind at most {_LONGEST_WAY} files that name others",
                                         self.source, "name the last file itself"))  # fmt: skip
        return replace(self, through=through)

    def near(self, path: str | Path) -> Path:
        """A path as it is meant at this place: beside the file, if it exists there."""
        beside = Path(self.source).parent / path
        return beside if self.source and os.path.exists(beside) else Path(path)  # no error for what can be no name

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
        return parse_yaml(source, "inline YAML")
    path = Path(source)
    try:
        text = utf8(path, _MOST_BYTES)
    except FileNotFoundError as cause:
        near = sorted(str(other) for other in path.parent.glob("*.y*ml"))[:8]
        hint = f"YAML files in {path.parent}: {', '.join(near)}" if near else "check the path"
        raise ConfigError(complaint("the configuration file", "exist", str(path), hint)) from cause
    except (OSError, UnicodeDecodeError) as cause:
        raise ConfigError(
            complaint("the configuration file", "be readable UTF-8 text", str(path), str(cause))
        ) from cause
    return parse_yaml(text, str(path))


def parse_yaml(text: str, source: str) -> Document:
    """The data of a YAML text and the line of each of its values.

    Args:
        text: the YAML.
        source: what to call it in messages.

    Raises:
        ConfigError: see :func:`load_yaml`.
    """
    if len(text) > _MOST_BYTES:
        raise ConfigError(complaint(f"{source}: the text", f"have at most {_MOST_BYTES} characters", len(text)))
    loader: _Loader | None = None
    lines: dict[KeyPath, int] = {}
    try:
        loader = _Loader(text)  # refuses characters that no YAML has
        node = loader.get_single_node()
        if node is not None:
            _Walk(source, loader, lines).down(node, ())
        data: Any = None if node is None else loader.construct_document(node)
    except yaml.MarkedYAMLError as cause:
        mark = cause.problem_mark or cause.context_mark
        line = "" if mark is None else f":{mark.line + 1}"
        problem = ", ".join(part for part in (cause.context, cause.problem) if part)
        raise ConfigError(complaint(f"{source}{line}: the text", "be well-formed YAML", hint=problem)) from cause
    except yaml.YAMLError as cause:
        raise ConfigError(complaint(f"{source}: the text", "be well-formed YAML", hint=str(cause))) from cause
    except RecursionError as cause:
        raise ConfigError(f"{source}: {_TOO_DEEP}") from cause
    finally:
        if loader is not None:
            loader.dispose()
    return Document(data, Where(source, (), lines))


class _Walk:
    """Notes the line of every value, and refuses what no configuration needs.

    What several aliases name is one node, and is looked at once: its lines are noted where it stands.
    """

    def __init__(self, source: str, loader: _Loader, lines: dict[KeyPath, int]) -> None:
        self.source, self.loader, self.lines = source, loader, lines
        self.known: dict[int, tuple[int, int] | None] = {}  # by a node's identity; None while it is being looked at

    def down(self, node: yaml.Node, path: KeyPath) -> tuple[int, int]:
        """(values, levels) of ``node`` with its aliases written out, ``path`` being the way to it."""
        line = self.lines.setdefault(path, node.start_mark.line + 1)
        where = Where(self.source, path, self.lines)
        if len(path) > _DEEPEST:
            raise Where(self.source, (), {(): line}).error(_TOO_DEEP)
        if id(node) in self.known:
            seen = self.known[id(node)]
            if seen is None:
                raise where.error(complaint("an anchor", "not contain itself"))
            return seen
        self.known[id(node)] = None
        if node.tag not in _TAGS:
            raise ConfigError(
                complaint(
                    f"{self.source}:{line}: the text", "be well-formed YAML", hint=f"it may have no tag {node.tag}"
                )
            )
        below = [(1, 0)]
        if isinstance(node, yaml.ScalarNode):
            self.scalar(node, where)
        elif isinstance(node, yaml.SequenceNode):
            below += [self.down(item, (*path, index)) for index, item in enumerate(node.value)]
        elif isinstance(node, yaml.MappingNode):
            below += self.mapping(node, path, where)
        found = sum(values for values, _ in below), 1 + max(levels for _, levels in below)
        if found[0] > _MOST_VALUES:
            raise where.error(complaint("a configuration", f"hold at most {_MOST_VALUES} values", found[0],
                                        "aliases count as what they stand for"))  # fmt: skip
        if found[1] > _DEEPEST:
            raise where.error(_TOO_DEEP)
        self.known[id(node)] = found
        return found

    def mapping(self, node: yaml.MappingNode, path: KeyPath, where: Where) -> list[tuple[int, int]]:
        """(values, levels) of what each key has."""
        found: list[tuple[int, int]] = []
        first_lines: dict[Key, int] = {}
        for key, value in node.value:
            line = key.start_mark.line + 1
            if key.tag == f"{_PREFIX}merge":
                mine, self.lines = self.lines, {}  # what is merged has its lines where it stands
                found.append(self.down(value, path))
                self.lines = mine
                continue
            if not isinstance(key, yaml.ScalarNode) or key.tag not in (f"{_PREFIX}str", f"{_PREFIX}int"):
                raise where.error(
                    complaint(f"a key in line {line}", "be plain text or a whole number",
                              key.value if isinstance(key, yaml.ScalarNode) else "a list or mapping",
                              "put it in quotes if the text is meant")
                )  # fmt: skip
            name: Key = self.scalar(key, where)
            place = (*path, name)
            self.lines[place] = line
            if name in first_lines:
                both = f"it stands in line {first_lines[name]} and again in line {line}: remove one"
                raise where.at(name).error(complaint(f"the key {name!r}", "be given once", hint=both))
            first_lines[name] = line
            found.append(self.down(value, place))
        return found

    def scalar(self, node: yaml.ScalarNode, where: Where) -> Any:
        """What a plain value means."""
        value: Any = _LARGEST  # of a number whose digits alone are too many
        if node.tag != f"{_PREFIX}int" or len(node.value) <= _MOST_DIGITS:
            try:
                node.value.encode()  # half of a surrogate pair can be neither written nor shown
                value = self.loader.construct_object(node)
            except (ValueError, KeyError) as cause:
                raise where.error(complaint("a value", f"be what its tag {node.tag} says", node.value)) from cause
        if isinstance(value, int) and not -_LARGEST <= value < _LARGEST:
            raise where.error(complaint("a whole number", "fit into 64 bits", node.value))
        return value
