"""What importing costs: neither ``import tokentrim`` nor ``--help`` may load torch or transformers."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import tokentrim

HEAVY = ("torch", "transformers", "numpy", "matplotlib", "pandas", "scipy")


def loaded_after(code):
    """Heavy modules that a fresh interpreter has loaded after running ``code``."""
    report = f"import sys; print(*[name for name in {HEAVY!r} if name in sys.modules])"
    here = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}  # the very files that are tested
    command = [sys.executable, "-c", f"{code}\n{report}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=here)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1].split()


def test_a_bare_import_is_light():
    assert loaded_after("import tokentrim") == []


def test_plugins_load_without_importing_what_they_register():
    code = "from tokentrim.plugins.loader import registry as r\nfor k in ('strategy', 'task', 'model'): r(k).names()"
    assert loaded_after(code) == []


def test_public_errors_are_light():
    assert loaded_after("from tokentrim import TokentrimError, hookimpl") == []


def test_help_is_light():
    if not (Path(tokentrim.__file__).parent / "cli" / "__init__.py").exists():
        pytest.skip("there is no command line yet")
    code = (
        "import sys\nfrom tokentrim.cli import main\nsys.argv = ['tokentrim', '--help']\n"
        "try:\n    main()\nexcept SystemExit as end:\n    assert end.code in (None, 0)"
    )
    assert loaded_after(code) == []


def test_plans_need_neither_torch_nor_transformers():
    """Of every built-in strategy that needs no file: on a published model, without its weights."""
    code = (
        "import sys\nfrom typer.testing import CliRunner\nfrom tokentrim.cli.app import app\n"
        "from tokentrim.plugins.loader import only_builtins, registry\nonly_builtins()\n"
        "specs = ['st3', '{name: fastv, k: 3}', '{spatial: fastv, temporal: vta, budget: {flops_ratio: 0.5}}']\n"
        "specs += [name for name in registry('strategy').names() if name not in ('replay', 'layer-counts')]\n"
        "for spec in specs:\n"
        "    done = CliRunner().invoke(app, ['plan', '--model', 'llava-1.5-7b', '--strategy', spec, '--json'])\n"
        "    assert done.exit_code == 0, (spec, done.output, done.exception)\n"
        "    assert not {'torch', 'transformers'} & set(sys.modules), spec"
    )
    assert not {"torch", "transformers"} & set(loaded_after(code))
