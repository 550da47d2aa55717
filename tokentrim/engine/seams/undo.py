"""Patching an object for a while: what is put in place of a method, and what puts the method back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def replaced(host: Any, name: str, function: Callable[..., Any]) -> Callable[[], None]:
    """Put ``function`` in place of a method on the instance; returns what puts it back."""
    before = host.__dict__.get(name)
    host.__dict__[name] = function

    def undo() -> None:
        if before is None:
            host.__dict__.pop(name, None)
        else:
            host.__dict__[name] = before

    return undo
