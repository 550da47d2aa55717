"""Public names of a package, imported on first use (PEP 562): whoever asks for one pays for no other's imports."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping
from typing import Any


def lazy(package: str, modules: Mapping[str, str]) -> tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]:
    """Make the ``__getattr__``, the ``__dir__`` and the ``__all__`` of a package.

    Args:
        package: its ``__name__``.
        modules: by module below ``tokentrim``, the names that it holds: ``{"calibrate.options": "GSearch, VTW"}``.

    The first raises AttributeError for a name that is not listed.
    """
    homes = {name: module for module, names in modules.items() for name in names.split(", ")}

    def find(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        found = getattr(importlib.import_module(f"tokentrim.{homes[name]}"), name)
        setattr(sys.modules[package], name, found)
        return found

    return find, lambda: sorted({*vars(sys.modules[package]), *homes}), list(homes)
