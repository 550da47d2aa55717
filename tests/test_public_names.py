"""The package's public names are lazy, complete, and the same for type checkers."""

import ast
import importlib
from pathlib import Path
from types import ModuleType
from typing import get_args

import pytest

import tokentrim

ROOT = Path(tokentrim.__file__).parent


@pytest.mark.parametrize("name", tokentrim.__all__)
def test_every_public_name_resolves(name):
    found = getattr(tokentrim, name)
    assert not isinstance(found, ModuleType)
    if name != "__version__" and not get_args(found):  # a choice of words has no docstring
        assert found.__doc__


@pytest.mark.parametrize("room", ["", *(path.parent.name for path in sorted(ROOT.glob("*/__init__.py")))])
def test_type_checkers_see_the_same_names(room):
    package = importlib.import_module(f"tokentrim.{room}".rstrip("."))
    imports = [
        (node.module, alias)
        for block in ast.parse(Path(package.__file__).read_text(encoding="utf-8")).body
        if isinstance(block, ast.If)
        for node in block.body
        for alias in node.names
    ]
    for module, alias in imports:
        assert getattr(package, alias.asname or alias.name) is getattr(importlib.import_module(module), alias.name)
    if imports:
        assert {alias.asname or alias.name for _, alias in imports} == {*package.__all__} - {"__version__"}


def test_an_unknown_name():
    with pytest.raises(AttributeError, match="no attribute 'trimm'"):
        tokentrim.trimm  # noqa: B018


def test_dir_lists_what_is_not_yet_imported():
    assert set(tokentrim.__all__) <= set(dir(tokentrim))
