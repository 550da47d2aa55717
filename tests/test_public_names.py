"""The package's public names are lazy, complete, and the same for type checkers."""

import ast
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


def test_type_checkers_see_the_same_names():
    tree = ast.parse((ROOT / "__init__.py").read_text())
    seen = {
        alias.name: node.module
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("tokentrim.")
        for alias in node.names
        if alias.asname == alias.name
    }
    assert seen == {name: f"tokentrim.{module}" for name, module in tokentrim._HOME.items()}


def test_an_unknown_name():
    with pytest.raises(AttributeError, match="no attribute 'trimm'"):
        tokentrim.trimm  # noqa: B018


def test_dir_lists_what_is_not_yet_imported():
    assert set(tokentrim.__all__) <= set(dir(tokentrim))
