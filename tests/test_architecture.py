"""The shape of the code: who may import whom, how long things may be, and what library code may not do."""

import ast
import re
import statistics
import sys
from collections import defaultdict
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
MAX_STRATEGY = 120
LONG_STRATEGIES = {
    "cdpruner.py": (
        169,
        "relevance is asked of CLIP or of the language model, which are two ways to be told and refused",
    ),
    "dycoke.py": (231, "two methods in one: at the input and at each step, and the whole that names both"),
    "framefusion.py": (194, "rounds of merging, then one cut: each row is at a point of its own"),
    "globalcom2.py": (148, "cells of the thumbnail, and its scores resized to the tiles"),
    "mmtok.py": (186, "which words show something, and what padding of a square was"),
    "prumerge.py": (200, "kept by outliers or by a budget, with and without evenly spaced tokens"),
    "prunevid.py": (239, "two stages: scenes, places that stand still and clusters; then attention"),
    "pvtp.py": (149, "rankings that boundaries inherit, an ablation of our own"),
    "quecc.py": (155, "a trained module: its sizes, and the windows that it is made for"),
    "replay.py": (194, "a part for each ability, and what a trace must be to be repeated"),
    "scissor.py": (180, "two rounds of components, of which the authors' outputs show every step"),
    "sparsevlm.py": (410, "four versions of one method, with tables, a rank rule and a correction of their own"),
    "tome.py": (163, "the recipe of pairs for each block, forwards and by a budget"),
    "vscan.py": (189, "two stages, and two families of released code for each"),
    "vta.py": (135, "three shapes of annealing and five rankings, each explained"),
}
"""Strategies that are longer than that: lines, which may only become fewer, and why."""
MAX_MEDIAN_FILE = 150
MAX_FLAT = 8
MAX_ENGINE = 260
MAX_READING = 600
DOORS = {"bench", "calibrate", "compare", "executors", "explain", "harness", "loading", "testbed", "testing", "train"}
"""Rooms whose names users import from them; all that authors need is in ``tokentrim`` itself."""


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
    allowed = {"tokentrim", "tokentrim_strategies", "torch", "pydantic", "typing_extensions", "safetensors", "numpy"}
    assert not offenders(STRATEGIES, imports_beyond(allowed))


def test_adapters_import_the_core_and_transformers():
    assert not offenders(ADAPTERS, imports_beyond({"tokentrim", "tokentrim_adapters", "torch", "transformers"}))


def test_library_code_raises_and_never_asserts():
    assert not offenders(
        LIBRARY, lambda path: (node.lineno for node in ast.walk(parse(path)) if isinstance(node, ast.Assert))
    )


def test_no_code_of_a_model_folder_is_trusted():
    """Every load says so: where nobody does, transformers asks on the terminal, and anything may answer."""

    def loads(path):
        for node in ast.walk(parse(path)):
            if isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "from_pretrained":
                said = [word for word in node.keywords if word.arg == "trust_remote_code" or word.arg is None]
                if [ast.unparse(word.value) for word in said] not in (["False"], ["_UNTRUSTED"]):
                    yield node.lineno

    assert not offenders(LIBRARY, loads)


def test_no_file_and_no_function_is_long():
    lengths = {name_of(path): len(path.read_text(encoding="utf-8").splitlines()) for path in LIBRARY}
    assert not {name: length for name, length in lengths.items() if length > MAX_FILE}
    assert not offenders(LIBRARY, lambda path: (one for one in functions(path) if one[1] > MAX_FUNCTION))


def test_strategies_read_like_their_papers():
    """One file, one class: what several methods do lies in the toolkit. Who shortens a file lowers its number."""
    lengths = {path.name: len(path.read_text(encoding="utf-8").splitlines()) for path in STRATEGIES}
    long = {name: length for name, length in lengths.items() if length > MAX_STRATEGY}
    assert long == {name: length for name, (length, _) in LONG_STRATEGIES.items()}


def test_the_median_file_is_short():
    lengths = [len(path.read_text(encoding="utf-8").splitlines()) for path in LIBRARY if path.name != "__init__.py"]
    assert statistics.median(lengths) <= MAX_MEDIAN_FILE


def test_few_files_lie_flat():
    assert len(list((ROOT / "tokentrim").glob("*.py"))) <= MAX_FLAT


def test_what_a_reader_opens_first_fits_one_sitting():
    quick_start, _, _ = (ROOT / "README.md").read_text(encoding="utf-8").partition("\n## ")
    read = [
        ROOT / "tokentrim/hookspecs.py",
        ROOT / "tokentrim/contracts/strategy.py",
        ROOT / "strategies/tokentrim_strategies/random_control.py",
        ROOT / "tokentrim/engine/engine.py",
    ]
    lengths = [len(text.splitlines()) for text in (quick_start, *(path.read_text(encoding="utf-8") for path in read))]
    assert lengths[-1] <= MAX_ENGINE
    assert sum(lengths) <= MAX_READING


def test_only_the_session_knows_the_whole_engine():
    def takes_it(path):
        return [
            node.lineno
            for node in ast.walk(parse(path))
            if isinstance(node, ast.ImportFrom) and node.module == "tokentrim.engine.engine"
        ]

    assert list(offenders(LIBRARY, takes_it)) == ["tokentrim/engine/session.py"]


def test_no_class_name_stands_twice():
    homes = defaultdict(list)
    for path in LIBRARY:
        for node in parse(path).body:
            if isinstance(node, ast.ClassDef):
                homes[node.name].append(name_of(path))
    assert not {name: paths for name, paths in homes.items() if len(paths) > 1}


def test_authors_import_from_the_package_alone():
    authors = [*STRATEGIES, *ADAPTERS, *ROOT.glob("docs/examples/tokentrim-example-plugin/**/*.py")]
    authors += ROOT.glob("tokentrim/cli/scaffold/templates/*.tmpl")
    texts = {name_of(path): path.read_text(encoding="utf-8") for path in authors}
    for path in [ROOT / "README.md", *ROOT.glob("docs/*.md")]:
        blocks = re.findall(r"```python\n(.*?)```", path.read_text(encoding="utf-8"), flags=re.DOTALL)
        texts[name_of(path)] = "\n".join(blocks)
    found = {
        name: beyond
        for name, text in texts.items()
        if (beyond := set(re.findall(r"^\s*(?:from|import) tokentrim\.(\w+)", text, flags=re.MULTILINE)) - DOORS)
    }
    assert not found


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
