"""A stranger's plugin, and the results of one small comparison from one process."""

import shutil
from pathlib import Path

import pytest

from tests.executors.small import CONFIG, Shaky
from tokentrim.compare import run
from tokentrim.plugins import loader as plugins

_ALONE = []


@pytest.fixture(scope="module")
def shaky(tmp_path_factory):
    """The plugin, installed for this process and those that it starts, as long as a module's tests run."""
    folder = tmp_path_factory.mktemp("shaky")
    shutil.copy(Path(__file__).with_name("shaky.py"), folder / "shaky.py")
    about = folder / "shaky-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: shaky\nVersion: 1.0\n", encoding="utf-8")
    (about / "entry_points.txt").write_text("[tokentrim]\nshaky = shaky\n", encoding="utf-8")
    orders = folder / "orders"
    orders.mkdir()
    patch = pytest.MonkeyPatch()
    patch.syspath_prepend(folder)
    patch.setenv("TOKENTRIM_PLUGINS", "shaky")
    patch.setenv("SHAKY", str(orders))
    plugins.load(again=True)
    yield Shaky(folder, orders)
    patch.undo()
    plugins.load(again=True)


@pytest.fixture(scope="module")
def alone(shaky, tmp_path_factory):
    """The folder of the comparison run in one process, once for all modules."""
    if not _ALONE:
        shaky.order()
        folder = tmp_path_factory.mktemp("alone")
        run(CONFIG, folder, formats=["csv"])
        _ALONE.append(folder)
    return _ALONE[0]
