"""Registry: names and lazy targets of one kind of thing, with the origin of each.

Registering imports nothing. Asking for a name imports its target, checks that it is what its kind demands, and
remembers it.
"""

from __future__ import annotations

import inspect
import pkgutil
import re
import sys
from abc import ABC, abstractmethod
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar, Final

from tokentrim.errors import PluginError, TokentrimError, UnknownNameError, cause_of, complaint, unknown_name

# Lower case, and none of YAML's or a path's signs: a name can then never be mistaken for inline YAML or a file.
_NAME: Final = re.compile(r"[a-z0-9](?:[a-z0-9_-]|(?<=[0-9])\.(?=[0-9]))*")
_TARGET: Final = re.compile(r"(?P<module>[\w.]+):(?P<attribute>[\w.]+)(\[(?P<key>[^\]]+)\])?")


@dataclass(frozen=True)
class Kind:
    """One kind of registered thing.

    Attributes:
        name: the word for it: strategy, adapter, task, executor, model.
        hook: the hook through which plugins register it.
        base: lazy target of the class that it must derive from, or None when anything will do.
        instances: whether targets are objects of ``base`` rather than classes derived from it.
        check: lazy target of a function that is given an imported target and its tags, and returns what is wrong with
            them, or "".
        exclusive: the tag whose values may each belong to one entry only.
    """

    name: str
    hook: str
    base: str | None = None
    instances: bool = False
    check: str | None = None
    exclusive: str | None = None


@dataclass(frozen=True)
class Origin:
    """Who registered a name: a plugin (entry point) of a distribution."""

    plugin: str
    distribution: str
    version: str

    def __str__(self) -> str:
        """Text for messages."""
        return f"plugin {self.plugin!r} of {self.distribution} {self.version}"


@dataclass(frozen=True)
class Entry:
    """One registered name.

    Attributes:
        kind: the word for its kind.
        name: the name.
        target: ``"module:Attribute"``, ``"module:MAPPING[key]"``, or the object itself.
        origin: who registered it.
        tags: what can be said of it without importing it.
    """

    kind: str
    name: str
    target: object
    origin: Origin
    tags: Mapping[str, Any]

    def __str__(self) -> str:
        """Text for messages."""
        return f"{self.kind} {self.name!r} of {self.origin}"


class Family(ABC):
    """A family of names that are kept elsewhere and looked up when they are asked for, each ``prefix:rest``.

    A plugin registers an object of a subclass under the prefix, with the tag ``family=True``. With the tag
    ``pattern="..."`` its names are those that the regular expression matches whole, and have no prefix.
    """

    lasting: ClassVar[bool] = True
    """Whether a name means the same as long as the process lives; what changes meanwhile is asked for each time."""

    @abstractmethod
    def origin(self, rest: str) -> tuple[str, str]:
        """Distribution that provides ``prefix:rest``, and its version: what changes when the thing may have changed.

        Args:
            rest: the name after its prefix, or all of it.

        Raises:
            TokentrimError: when there is no such name, or what is needed to know is not installed.
        """

    @abstractmethod
    def get(self, rest: str) -> Any:
        """What ``prefix:rest`` names.

        Raises:
            TokentrimError: when there is no such name, or it cannot be had here.
        """


class Registry:
    """Name -> :class:`Entry`, for one kind. Filled while plugins load, then frozen."""

    def __init__(self, kind: Kind) -> None:
        self.kind: Final = kind
        self._entries: dict[str, Entry] = {}
        self._families: dict[str, Entry] = {}
        self._resolved: dict[str, Any] = {}
        self._lost: dict[str, PluginError] = {}
        self._broken: list[PluginError] = []
        self._skipped: tuple[str, ...] = ()
        self._frozen = False

    def make_entry(self, name: str, target: object, origin: Origin, tags: Mapping[str, Any]) -> Entry:
        """A checked entry that is not yet registered.

        Raises:
            PluginError: when the name or the target has not the right form.
        """
        whom = f"{self.kind.name} {name!r} of {origin}"
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise PluginError(
                complaint(
                    f"the name of a {self.kind.name} of {origin}",
                    "consist of a-z, 0-9, '-', '_' and a '.' between digits",
                    name,
                )
            )
        if isinstance(target, str) and not _TARGET.fullmatch(target):
            raise PluginError(
                complaint(f"the target of {whom}", "read 'package.module:Attribute'", target,
                          "put a colon between the module and the attribute")
            )  # fmt: skip
        return Entry(self.kind.name, name, target, origin, MappingProxyType(dict(tags)))

    def check_free(self, entry: Entry) -> None:
        """Raise PluginError, naming both origins, when the entry's name, or what it alone may serve, is taken."""
        taken = self._entries.get(entry.name) or self._families.get(entry.name)
        if taken is not None:
            raise PluginError(
                complaint(
                    f"the {self.kind.name} name {entry.name!r}",
                    "be registered once",
                    hint=f"it is registered by {taken.origin} and again by {entry.origin}: rename one, or keep one "
                    "of them from loading with the environment variable TOKENTRIM_PLUGINS",
                )
            )
        tag = self.kind.exclusive
        for other in self._entries.values() if tag is not None else ():
            shared = sorted(_values(entry, tag) & _values(other, tag))
            if shared:
                raise PluginError(
                    complaint(f"{tag} of {entry}", "belong to it alone", shared,
                              f"{other} serves {', '.join(shared)}: take it out, or keep one of the two from loading "
                              "with the environment variable TOKENTRIM_PLUGINS")
                )  # fmt: skip

    def add(self, entry: Entry) -> None:
        """Register an entry.

        Raises:
            PluginError: when the name is taken, or the registry is frozen.
        """
        if self._frozen:
            raise PluginError(
                complaint(f"{entry}", "be registered while plugins load",
                          hint=f"register it in the hook {self.kind.hook} of a plugin")
            )  # fmt: skip
        self.check_free(entry)
        (self._families if entry.tags.get("family") else self._entries)[entry.name] = entry

    def lose(self, name: str, cause: PluginError) -> None:
        """Remember why a name that a broken plugin would have provided is not there."""
        self._lost.setdefault(name, cause)

    def freeze(self, broken: list[PluginError], skipped: Sequence[str] = ()) -> None:
        """End registration.

        Args:
            broken: the plugins that failed, for the message about an unknown name.
            skipped: names of the plugins that were not to load, for the same.
        """
        self._broken = list(broken)
        self._skipped = tuple(skipped)
        self._frozen = True

    def names(self) -> tuple[str, ...]:
        """All registered names, sorted."""
        return tuple(sorted(self._entries))

    def families(self) -> tuple[Entry, ...]:
        """The registered families of names, whose members are not listed."""
        return tuple(self._families[prefix] for prefix in sorted(self._families))

    def __iter__(self) -> Iterator[Entry]:
        """All entries, in the order of their names."""
        return iter([self._entries[name] for name in self.names()])

    def __len__(self) -> int:
        """Number of registered names."""
        return len(self._entries)

    def __contains__(self, name: object) -> bool:
        """Whether a name is registered."""
        return name in self._entries

    def knows(self, name: str) -> bool:
        """Whether a name is registered, or a broken plugin would have registered it."""
        return name in self._entries or name in self._lost or self.member(name) is not None

    def member(self, name: str) -> tuple[Entry, str] | None:
        """The family that a name is of, and what the family calls it; None where it is of none."""
        for family in self._families.values():
            pattern = family.tags.get("pattern")
            if pattern is not None and re.fullmatch(pattern, name, re.DOTALL):
                return family, name
        prefix, colon, rest = name.partition(":")
        family = self._families.get(prefix)
        return (family, rest) if family is not None and colon and "pattern" not in family.tags else None

    def entry(self, name: str) -> Entry:
        """The entry of a name; imports nothing, unless the name is one of a family.

        Raises:
            UnknownNameError: when the name is not registered; lists the names and suggests the nearest.
            PluginError: when a plugin would have provided the name and failed; its cause is chained.
        """
        if name in self._entries:
            return self._entries[name]
        found = self.member(name)
        if found is not None:
            family, rest = found
            known = self._family(family.name)
            with strangers(family, f"origin({rest!r}) of {family} failed", refuses=True):
                distribution, version = known.origin(rest)
            return Entry(family.kind, name, family.target, Origin(family.origin.plugin, distribution, version), {})
        if name in self._lost:
            lost = self._lost[name]
            raise PluginError(f"{self.kind.name} {name!r} is not there, because {lost}") from lost
        names = [*self._entries, *map(members_of, self._families.values())]
        raise self.unknown(unknown_name(self.kind.name, name, names))

    def unknown(self, error: UnknownNameError) -> UnknownNameError:
        """The error about an unknown name, with the plugins that did not load and may have provided it."""
        notes = [f"Not loaded, and may have provided it: {cause}" for cause in self._broken]
        if self._skipped:
            notes.append(f"Not loaded, by TOKENTRIM_PLUGINS or --no-plugins: {', '.join(self._skipped)}.")
        more = UnknownNameError(" ".join((str(error), *notes)))
        more.__cause__ = next(iter(self._broken), None)
        return more

    def get(self, name: str) -> Any:
        """The target of a name, imported and checked.

        Raises:
            UnknownNameError: when the name is not registered.
            PluginError: when the target cannot be imported, or is not what its kind demands.
        """
        if name in self._resolved:
            return self._resolved[name]
        entry = self.entry(name)
        member = None if name in self._entries else self.member(name)
        if member is None:
            found, lasting = resolve(entry), True
        else:
            family = self._family(member[0].name)
            with strangers(entry, f"get({member[1]!r}) of {entry} failed", refuses=True):
                found, lasting = family.get(member[1]), family.lasting
        with strangers(entry, f"{entry} could not be checked"):
            self._check(entry, found)
        if lasting:
            self._resolved[name] = found
        return found

    def probe(self, name: str) -> None:
        """Import and check what is registered under a name, which may be a family's prefix.

        Raises:
            TokentrimError: when it cannot be used.
        """
        if name in self._families:
            self._family(name)
        else:
            self.get(name)

    def _family(self, prefix: str) -> Family:
        """The object that knows a family's names.

        Raises:
            PluginError: when the target cannot be imported, or is no family.
        """
        entry = self._families[prefix]
        found = resolve(entry)
        if not isinstance(found, Family):
            raise PluginError(complaint(f"{entry}", "be an object of class tokentrim.plugins.registry:Family", found))
        return found

    def _check(self, entry: Entry, found: object) -> None:
        """Raise PluginError unless ``found`` is what the kind demands."""
        if self.kind.base is not None:
            base = load_target(self.kind.base)
            fits = (
                isinstance(found, base) if self.kind.instances else inspect.isclass(found) and issubclass(found, base)
            )
            relation = "be an object of class" if self.kind.instances else "be a class derived from"
            if not fits:
                raise PluginError(complaint(f"{entry}", f"{relation} {self.kind.base}", found))
        if inspect.isabstract(found):
            missing = ", ".join(sorted(getattr(found, "__abstractmethods__", ())))
            raise PluginError(complaint(f"{entry}", f"define {missing}", hint="an abstract class cannot be run"))
        # A name that differs would show one method's results under another's name after a round trip.
        own = getattr(found, "name", entry.name)
        if isinstance(own, str) and own != entry.name:
            raise PluginError(
                complaint(
                    f"{entry}",
                    "be registered under its own name",
                    own,
                    "let the class's name and the registered one agree",
                )
            )
        problem = load_target(self.kind.check)(found, entry.tags) if self.kind.check is not None else ""
        if problem:
            raise PluginError(f"{entry}: {problem}")


def members_of(family: Entry) -> str:
    """How names of a family look, for lists."""
    return str(family.tags.get("members", f"{family.name}:NAME"))


def _values(entry: Entry, tag: str | None) -> set[str]:
    """The values of a tag, which may be one text or several."""
    found = entry.tags.get(tag or "", ())
    return {found} if isinstance(found, str) else {str(value) for value in found}


@contextmanager
def strangers(whom: object, what: str, repair: str = "", *, refuses: bool = False) -> Generator[None]:
    """Run the code of a plugin, whatever it raises, and whatever it prints, which is no result of ours.

    Args:
        whom: who it is, as errors of ours name him.
        what: what failed, in the words of an error.
        repair: what to do about it.
        refuses: whether errors of our family are answers, which go through as they are.

    Raises:
        PluginError: with the cause chained.
    """
    try:
        with redirect_stdout(sys.stderr):
            yield
    except BaseException as cause:  # a stranger's code may raise anything
        ours = isinstance(cause, TokentrimError if refuses else PluginError) and (refuses or str(whom) in str(cause))
        if ours or isinstance(cause, KeyboardInterrupt):
            raise
        raise PluginError(f"{what}: {cause_of(cause)}.{repair}") from cause


def resolve(entry: Entry) -> Any:
    """Import an entry's target.

    Raises:
        PluginError: naming the entry, its origin and the cause, which is chained.
    """
    if not isinstance(entry.target, str):
        return entry.target
    failed = f"{entry} could not be imported from {entry.target!r}"
    with strangers(entry, failed, f" Repair or reinstall {entry.origin.distribution}."):
        return load_target(entry.target)


def load_target(target: str) -> Any:
    """Import ``"module:Attribute"`` or ``"module:MAPPING[key]"``."""
    match = _TARGET.fullmatch(target)
    if match is None:
        raise PluginError(complaint("a target", "read 'package.module:Attribute'", target))
    found = pkgutil.resolve_name(f"{match['module']}:{match['attribute']}")
    return found if match["key"] is None else found[match["key"]]
