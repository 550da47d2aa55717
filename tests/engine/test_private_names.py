"""What transformers keeps to itself: each name that we use is in the installed release, and in the seams alone."""

from __future__ import annotations

import importlib
import inspect
import re
from pathlib import Path

import pytest

from tokentrim.engine.seams.private import PRIVATE_NAMES

LIBRARY = Path(inspect.getfile(inspect.getmodule(importlib.import_module("tokentrim")))).parent  # type: ignore[arg-type]
SEAMS = {"attention.py", "sharding.py", "seams_private.py"}


def sources(where: str) -> list[str]:
    """Source of a module, or of a class and all that it derives from."""
    try:
        return [inspect.getsource(importlib.import_module(where))]
    except ModuleNotFoundError:
        module, _, name = where.rpartition(".")
        found = getattr(importlib.import_module(module), name)
        return [inspect.getsource(kind) for kind in found.__mro__ if kind is not object]


@pytest.mark.parametrize("name", sorted(PRIVATE_NAMES))
def test_it_is_in_the_installed_release(name: str) -> None:
    pytest.importorskip(PRIVATE_NAMES[name].partition(".")[0])
    assert any(name in source for source in sources(PRIVATE_NAMES[name]))


def test_it_occurs_in_the_seams_alone() -> None:
    word = re.compile(rf"(?<!\w)({'|'.join(map(re.escape, PRIVATE_NAMES))})(?!\w)")
    elsewhere = [path for path in LIBRARY.rglob("*.py") if path.parent.name != "seams" and path.name not in SEAMS]
    assert elsewhere
    assert not [str(path) for path in elsewhere if word.search(path.read_text(encoding="utf-8"))]
