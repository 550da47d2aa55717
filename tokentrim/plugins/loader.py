"""Loading of plugins: built-ins and strangers through the same door, one by one, so that no one breaks another.

The environment variable ``TOKENTRIM_PLUGINS`` limits what loads: a comma-separated list of plugin (entry point) or
distribution names; empty means the built-ins alone. Built-ins always load.
"""

from __future__ import annotations

import inspect
import os
import re
import sys
import threading
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Final, Literal

import pluggy

from tokentrim import hookspecs
from tokentrim.errors import PluginError, TokentrimError, complaint, suggestion, unknown_name
from tokentrim.hookspecs import PROJECT, hookimpl
from tokentrim.plugins.registry import Entry, Kind, Origin, Registry, strangers

__all__ = ["KINDS", "LIMIT_VARIABLE", "PluginInfo", "PluginWarning", "Plugins", "checked_infos", "hookimpl", "load",
           "only_builtins", "plugin_infos", "registry"]  # fmt: skip

KINDS: Final = (
    Kind(
        "strategy",
        "tokentrim_strategies",
        base="tokentrim.contracts.strategy:Strategy",
        check="tokentrim.contracts.declared:wrong_in_strategy",
    ),
    Kind(
        "adapter",
        "tokentrim_adapters",
        base="tokentrim.contracts.adapter:Adapter",
        check="tokentrim.contracts.declared:wrong_in_adapter",
        exclusive="model_types",
    ),
    Kind(
        "task",
        "tokentrim_tasks",
        base="tokentrim.contracts.tasks:Task",
        check="tokentrim.contracts.declared:wrong_in_task",
        instances=True,
    ),
    Kind("executor", "tokentrim_executors", base="tokentrim.executors.base:Executor"),
    Kind("model", "tokentrim_models"),
)
LIMIT_VARIABLE: Final = "TOKENTRIM_PLUGINS"
DISTRIBUTION: Final = "tokentrim-vlm"
"""What is installed; on the package index another project has the name tokentrim."""
_OURS: Final = ("tokentrim", "tokentrim_strategies", "tokentrim_adapters")
"""Packages that come with tokentrim."""

Status = Literal["loaded", "broken", "failed", "skipped", "missing"]


class PluginWarning(UserWarning):
    """A plugin did not load; the others did."""


@dataclass(frozen=True)
class PluginInfo:
    """What became of one plugin.

    Attributes:
        name: name of its entry point.
        distribution: the distribution that it came with.
        version: that distribution's version.
        hooks: hooks that it implements.
        provides: what it registered, as ``"kind:name"``.
        status: loaded; broken: loaded, but something that it registered cannot be used (its other names can); failed;
            skipped by the environment variable; missing, though the variable names it.
        error: why it failed, or what of it is broken.
    """

    name: str
    distribution: str
    version: str
    hooks: tuple[str, ...] = ()
    provides: tuple[str, ...] = ()
    status: Status = "loaded"
    error: str | None = None


class Plugins:
    """The plugins of one process and the registries that they filled."""

    def __init__(self, found: Iterable[EntryPoint], limit: frozenset[str] | None = None) -> None:
        """Load ``found``, in the given order.

        Args:
            found: entry points.
            limit: names of the plugins or distributions that may load beside the built-ins; None = all.
        """
        self.limit: Final = limit
        self.builtins: Final[set[str]] = set()
        self.registries: Final = {kind.name: Registry(kind) for kind in KINDS}
        self.infos: list[PluginInfo] = []
        self.failures: list[PluginError] = []
        self._manager = pluggy.PluginManager(PROJECT)
        self._manager.add_hookspecs(hookspecs)
        names: set[str] = set()
        for point in found:
            origin = _origin(point)
            names |= {origin.plugin, origin.distribution}
            if _is_builtin(point):
                self.builtins.add(point.name)
            if limit is None or limit & {origin.plugin, origin.distribution} or _is_builtin(point):
                self._load_one(point, origin)
            else:
                self._note(origin, status="skipped")
        for name in sorted((limit or frozenset()) - names):
            error = unknown_name(f"plugin in {LIMIT_VARIABLE}", name, names)
            self.failures.append(PluginError(str(error)))
            self._note(Origin(name, "", ""), status="missing", error=str(error))
        for registry in self.registries.values():
            registry.freeze(self.failures, [info.name for info in self.infos if info.status == "skipped"])

    def _load_one(self, point: EntryPoint, origin: Origin) -> None:
        """Load one plugin whole or not at all, and remember what became of it."""
        entries: list[Entry] = []
        hooks: tuple[str, ...] = ()
        module: object = None
        repair = f" Repair or reinstall {origin.distribution}."
        try:
            with strangers(origin, f"{origin} could not be imported from {point.value!r}", repair):
                module = point.load()
            hooks = self._register(module, origin)
            self._collect(module, hooks, origin, entries)
            for entry in entries:
                self.registries[entry.kind].check_free(entry)
        except PluginError as error:
            if self._manager.is_registered(module):
                self._manager.unregister(module)
            for entry in entries:
                self.registries[entry.kind].lose(entry.name, error)
            self.failures.append(error)
            self._note(origin, hooks=hooks, status="failed", error=str(error))
            return
        for entry in entries:
            self.registries[entry.kind].add(entry)
        self._note(origin, hooks=hooks, provides=tuple(f"{entry.kind}:{entry.name}" for entry in entries))

    def _note(self, origin: Origin, **found: Any) -> None:
        self.infos.append(PluginInfo(origin.plugin, origin.distribution, origin.version, **found))

    def _register(self, module: object, origin: Origin) -> tuple[str, ...]:
        """Hand a plugin to pluggy and return the names of its hooks.

        Raises:
            PluginError: when it implements no hook, or a hook that does not exist or has other arguments.
        """
        known = [kind.hook for kind in KINDS]
        with strangers(origin, f"{origin} could not be searched for hooks"):
            functions = inspect.getmembers(module, inspect.isfunction)
        for name, _ in functions:
            marked = self._manager.parse_hookimpl_opts(module, name) is not None
            if name in known and not marked:
                raise PluginError(
                    complaint(f"{name} of {origin}", "be marked", hint="write @tokentrim.hookimpl above it")
                )
            if marked and name not in known:
                raise PluginError(
                    complaint(f"hook {name} of {origin}", "be a known hook", name, suggestion(name, known))
                )
        try:
            self._manager.register(module, f"{origin.distribution}/{origin.plugin}")
            self._manager.check_pending()
        except (pluggy.PluginValidationError, ValueError) as cause:
            raise PluginError(complaint(f"{origin}", "implement hooks as specified", hint=str(cause))) from cause
        hooks = tuple(sorted(caller.name for caller in self._manager.get_hookcallers(module) or ()))
        if not hooks:
            raise PluginError(
                complaint(
                    f"{origin}",
                    "implement a hook",
                    hint=f"implement one of {', '.join(known)} in the module itself",
                )
            )
        return hooks

    def _collect(self, module: object, hooks: Sequence[str], origin: Origin, entries: list[Entry]) -> None:
        """Call a plugin's hooks and append what it registers to ``entries``; nothing else changes.

        Raises:
            PluginError: when a hook raises, or registers what is malformed or given twice.
        """
        others = [plugin for plugin in self._manager.get_plugins() if plugin is not module]
        for kind in KINDS:
            if kind.hook not in hooks:
                continue
            register = _recorder(self.registries[kind.name], origin, entries)
            with strangers(origin, f"{kind.hook} of {origin} failed"):
                self._manager.subset_hook_caller(kind.hook, others)(register=register)


def _recorder(registry: Registry, origin: Origin, entries: list[Entry]) -> Callable[..., None]:
    """The ``register`` that a plugin is handed: it checks the form and writes down, and changes no registry."""

    def register(name: str, target: object, **tags: object) -> None:
        entry = registry.make_entry(name, target, origin, tags)
        if any(other.kind == entry.kind and other.name == entry.name for other in entries):
            raise PluginError(complaint(f"{entry}", "be registered once", hint="remove one of the two registrations"))
        entries.append(entry)

    return register


def _origin(point: EntryPoint) -> Origin:
    """Who an entry point belongs to."""
    if point.dist is None:
        raise PluginError(complaint(f"entry point {point.name!r}", "belong to a distribution", point.value))
    return Origin(point.name, point.dist.name, point.dist.version)


def _is_builtin(point: EntryPoint) -> bool:
    """Whether an entry point is one of ours: the name of a distribution alone can be taken by anybody.

    A checkout that was installed before the distribution had its name goes by that of the project.
    """
    return _origin(point).distribution in (DISTRIBUTION, PROJECT) and re.split("[.:]", point.value)[0] in _OURS


def discover() -> list[EntryPoint]:
    """Entry points of the group ``tokentrim``: built-ins first, then by distribution and name.

    Raises:
        PluginError: when tokentrim itself is not installed, so that nobody says what comes with it.
    """
    found = entry_points(group=PROJECT)
    if not any(_is_builtin(point) for point in found):
        names = (DISTRIBUTION, PROJECT)
        others = sorted({f"{point.name} = {point.value}" for point in found if _origin(point).distribution in names})
        got = (f"another distribution of that name, with {', '.join(others)}",) if others else ()
        raise PluginError(complaint(DISTRIBUTION, "be installed", *got, hint="run 'pip install -e .' in its checkout"))
    # A fixed order, so that the same installation gives the same registry in every process.
    ordered = sorted(found, key=lambda point: (not _is_builtin(point), _origin(point).distribution, point.name))
    named = any(_origin(point).distribution == DISTRIBUTION for point in ordered)
    return [point for point in ordered if not (named and _is_builtin(point) and _origin(point).distribution == PROJECT)]


def parse_limit(text: str | None) -> frozenset[str] | None:
    """The names in the environment variable's value; None = no limit."""
    return None if text is None else frozenset(re.findall(r"[^,\s]+", text))


_loaded: Plugins | None = None
_lock: Final = threading.Lock()


def load(*, again: bool = False) -> Plugins:
    """Load the plugins of this process, once; ``again`` loads them anew, for tests and notebooks.

    Each plugin that fails is reported by one :class:`PluginWarning` and remembered; the others load.
    """
    global _loaded
    with _lock:
        if _loaded is not None and not again:
            return _loaded
        _loaded = plugins = Plugins(discover(), parse_limit(os.environ.get(LIMIT_VARIABLE)))
    # After everything is in place, because a warning may be turned into an error.
    for failure in plugins.failures:
        warnings.warn(str(failure), PluginWarning, stacklevel=2)
    return plugins


def registry(kind: str) -> Registry:
    """The registry of a kind: strategy, adapter, task, executor or model.

    Raises:
        UnknownNameError: when there is no such kind.
    """
    registries = load().registries
    if kind not in registries:
        raise unknown_name("kind of plugin", kind, registries)
    return registries[kind]


def plugin_infos() -> tuple[PluginInfo, ...]:
    """What became of every plugin, in the order of loading; nothing that they registered is imported."""
    return tuple(load().infos)


def checked_infos(*, builtins: bool = True) -> tuple[PluginInfo, ...]:
    """What became of every plugin, after importing and checking everything that it registered.

    Args:
        builtins: whether those that come with tokentrim are checked too.
    """
    plugins = load()
    return tuple(
        _checked(info, plugins) if builtins or info.name not in plugins.builtins else info for info in plugins.infos
    )


def _checked(info: PluginInfo, plugins: Plugins) -> PluginInfo:
    """The info of a plugin, broken where a name that it registered cannot be used."""
    errors: list[str] = []
    for kind, _, name in (provided.partition(":") for provided in info.provides):
        try:
            plugins.registries[kind].probe(name)
        except TokentrimError as error:
            errors.append(str(error))
    return replace(info, status="broken", error=" ".join(errors)) if errors else info


def only_builtins() -> None:
    """Load the built-ins alone, here and in processes that this one starts; undoes what was loaded before."""
    os.environ[LIMIT_VARIABLE] = ""
    if _loaded is not None and _loaded.limit != frozenset():
        load(again=True)


def installed_version() -> str:
    """The version of tokentrim that runs, whatever else is installed by that name."""
    return sys.modules[PROJECT].__version__  # the package around this module, whose other names lie above this room
