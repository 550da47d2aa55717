"""The shape of the code: who may import whom, how long things may be, and what library code may not do."""

import ast
import statistics
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
CORE = sorted(ROOT.glob("tokentrim/**/*.py"))
STRATEGIES = sorted(ROOT.glob("strategies/tokentrim_strategies/**/*.py"))
ADAPTERS = sorted(ROOT.glob("adapters/tokentrim_adapters/**/*.py"))
LIBRARY = [*CORE, *STRATEGIES, *ADAPTERS]

MAX_FILE = 450
MAX_FUNCTION = 80
MAX_MEDIAN_FILE = 150


def name_of(path):
    return str(path.relative_to(ROOT))


@cache
def parse(path):
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def imported(path):
    """Top-level names of the packages that a file imports, anywhere in it."""
    for node in ast.walk(parse(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield (node.module or "").split(".")[0]
        elif isinstance(node, ast.ImportFrom):
            yield "(relative import)"


def functions(path):
    for node in ast.walk(parse(path)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node.name, node.end_lineno - node.lineno + 1


def offenders(paths, found):
    """File -> what ``found`` finds in it, for every file in which it finds something."""
    return {name_of(path): wrong for path in paths if (wrong := list(found(path)))}


def imports_beyond(allowed):
    return lambda path: set(imported(path)) - allowed - sys.stdlib_module_names


def test_the_core_never_imports_plugins():
    forbidden = {"tokentrim_strategies", "tokentrim_adapters", "(relative import)"}
    assert not offenders(CORE, lambda path: forbidden & set(imported(path)))


def test_strategies_import_the_core_alone():
    allowed = {"tokentrim", "tokentrim_strategies", "torch", "pydantic", "safetensors", "numpy"}
    assert not offenders(STRATEGIES, imports_beyond(allowed))


def test_adapters_import_the_core_and_transformers():
    assert not offenders(ADAPTERS, imports_beyond({"tokentrim", "tokentrim_adapters", "torch", "transformers"}))


def test_library_code_raises_and_never_asserts():
    assert not offenders(
        LIBRARY, lambda path: (node.lineno for node in ast.walk(parse(path)) if isinstance(node, ast.Assert))
    )


def test_no_file_and_no_function_is_long():
    lengths = {name_of(path): len(path.read_text(encoding="utf-8").splitlines()) for path in LIBRARY}
    assert not {name: length for name, length in lengths.items() if length > MAX_FILE}
    assert not offenders(LIBRARY, lambda path: (one for one in functions(path) if one[1] > MAX_FUNCTION))


def test_the_median_file_is_short():
    lengths = [len(path.read_text(encoding="utf-8").splitlines()) for path in LIBRARY if path.name != "__init__.py"]
    assert statistics.median(lengths) <= MAX_MEDIAN_FILE


@pytest.mark.parametrize("folder", ["strategies", "adapters"])
def test_only_prefixed_packages_reach_a_users_import_space(folder):
    assert not (ROOT / folder / "__init__.py").exists()
    assert [path.name for path in (ROOT / folder).iterdir() if (path / "__init__.py").exists()] == [
        f"tokentrim_{folder}"
    ]


def test_top_level_folders_are_the_five():
    tracked = {"tokentrim", "strategies", "adapters", "tests", "docs"}
    made = {"runs", "build", "dist", "site"}  # by the Makefile; git ignores them
    found = {path.name for path in ROOT.iterdir() if path.is_dir() and not path.name.startswith((".", "__"))}
    assert found - made <= tracked
