"""Changing a model for a while, so that it is put back whatever happens: exceptions, Ctrl-C, other people's wrappers.

What undoes a change is noted before the change is made. There is no moment at which a change is there and nobody knows
how to take it back.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from types import MethodType
from typing import Any

from torch import nn

from tokentrim.engine.seams.private import HOOKS

_ABSENT = object()


class Undo:
    """Acts that put things back, run in reverse.

    An act does nothing where its change was not made, or is undone already: so it may be noted before the change, and
    run again where it was cut short.
    """

    def __init__(self) -> None:
        self._acts: list[Callable[[], None]] = []
        self._whole: Undo | None = None

    def __bool__(self) -> bool:
        """Whether there is something to undo."""
        return bool(self._acts)

    def note(self, act: Callable[[], None]) -> None:
        """Remember how to take back the change that comes next."""
        self._acts.append(act)

    def part(self) -> Undo:
        """For what is undone before: a part that may be run by itself, and is run with the whole where it was not."""
        part = Undo()
        part._whole = self
        self.note(part.run)
        return part

    def run(self) -> None:
        """Undo everything.

        An act that raises does not keep the others from running; its exception is raised when all have run. What
        Ctrl-C cuts short is gone on with before it is raised.
        """
        try:
            self._run()
        finally:
            try:
                self._run()
            finally:
                self._run()

    def _run(self) -> None:
        failed: Exception | None = None
        while self._acts:
            act = self._acts[-1]
            try:
                act()
            except Exception as error:
                failed = failed or error
            self._forget(act)
        if self._whole is not None:
            self._whole._forget(self.run)
        if failed is not None:
            raise failed

    def _forget(self, act: Callable[[], None]) -> None:
        if act in self._acts:
            self._acts.remove(act)


def hook(
    module: nn.Module,
    function: Callable[..., Any],
    undo: Undo,
    *,
    before: bool,
    first: bool = False,
    always: bool = False,
) -> None:
    """Call ``function`` at every forward of a module.

    Args:
        module: whose forward.
        function: a hook; one ``before`` the forward is handed the keyword arguments, too.
        undo: takes it out.
        before: or behind it.
        first: in front of the hooks that are there.
        always: also behind a forward that raised.
    """
    undo.note(functools.partial(_unhook, module, function))
    if before:
        module.register_forward_pre_hook(function, with_kwargs=True, prepend=first)
    else:
        module.register_forward_hook(function, prepend=first, always_call=always)


def _unhook(module: nn.Module, function: Callable[..., Any]) -> None:
    """Take a hook out, also where putting it in was cut short: its handle is then lost."""
    for name, options in HOOKS.items():
        hooks: dict[int, Any] = getattr(module, name)
        for number in [number for number, found in list(hooks.items()) if found is function]:
            for option in options:
                getattr(module, option).pop(number, None)
            hooks.pop(number, None)


def patch(host: Any, name: str, make: Callable[[Callable[..., Any]], Callable[..., Any]], undo: Undo) -> None:
    """Put ``make(method)`` in place of a method, on the instance.

    Whoever wraps the method meanwhile (accelerate, when it prepares a model) keeps the wrapper: what it wraps then
    hands every call on to the method that was there.

    Args:
        host: whose method.
        name: of the method.
        make: makes the stand-in of the method.
        undo: puts the method back.
    """
    method: Any = getattr(host, name)
    own = host.__dict__.get(name, _ABSENT)
    box: list[Callable[..., Any] | None] = [make(method)]
    ours: Any = None
    if isinstance(method, MethodType) and method.__self__ is host:
        function = method.__func__

        @functools.wraps(function)
        def bound(this: Any, /, *args: Any, **kwargs: Any) -> Any:
            stand_in = box[0] if this is host else None  # a copy of the host has a method of its own
            return function(this, *args, **kwargs) if stand_in is None else stand_in(*args, **kwargs)

        ours = MethodType(bound, host)
    else:

        @functools.wraps(method)
        def unbound(*args: Any, **kwargs: Any) -> Any:
            return (box[0] or method)(*args, **kwargs)

        ours = unbound

    def put_back() -> None:
        box[0] = None
        if host.__dict__.get(name) is ours:
            if own is _ABSENT:
                host.__dict__.pop(name, None)
            else:
                host.__dict__[name] = own

    undo.note(put_back)
    host.__dict__[name] = ours
