"""What transformers keeps to itself: each name that we use stands in one list, and is in the installed release."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
from pathlib import Path

import pytest

from tokentrim.engine.seams.private import PRIVATE_NAMES

ROOT = Path(__file__).parents[2]
LIBRARY = [path for folder in ("tokentrim", "strategies", "adapters") for path in ROOT.glob(f"{folder}/**/*.py")]
SEAMS = ROOT / "tokentrim/engine/seams"
OTHERS = {"_exit", "_fields", "_filters"}
"""Of os and of named tuples, documented; of lmms-eval's tasks."""
ELSEWHERE = [path for path in LIBRARY if path.parent != SEAMS]


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
    assert not [str(path) for path in ELSEWHERE if word.search(path.read_text(encoding="utf-8"))]


def test_no_private_name_of_others_is_missing_in_the_list() -> None:
    ours: set[str] = set()
    theirs: dict[str, str] = {}
    for path in LIBRARY:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                ours.add(node.name)
            elif isinstance(node, ast.Name):
                ours.add(node.id)
            elif isinstance(node, ast.Attribute) and node.attr.startswith("_") and not node.attr.startswith("__"):
                at_home = isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")
                ours.add(node.attr) if at_home else theirs.setdefault(node.attr, f"{path}:{node.lineno}")
    assert not {name: where for name, where in theirs.items() if name not in ours | PRIVATE_NAMES.keys() | OTHERS}
