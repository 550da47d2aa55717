"""What tests in the environment of lmms-eval share: a local task, and commands run as a user would run them."""

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from types import SimpleNamespace

import pytest

from tests.harness.local_task import write_task


def pytest_collection_modifyitems(items):
    """Leave out what needs a harness where it is not installed."""
    for item in items:
        marker = item.get_closest_marker("lmms")
        if marker is not None and find_spec(marker.kwargs.get("needs", "lmms_eval")) is None:
            item.add_marker(pytest.mark.skip(reason="needs lmms-eval: make test-lmms"))
        elif marker is not None:
            # The harnesses and what they import warn of many things that are theirs.
            item.add_marker(pytest.mark.filterwarnings("default"))


@pytest.fixture(scope="session")
def tasks_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tasks")
    write_task(folder)
    return folder


@pytest.fixture(scope="session")
def home(tmp_path_factory):
    """Environment of commands: nothing from outside, and caches of their own."""
    caches = tmp_path_factory.mktemp("caches")
    return {**os.environ, "HF_HOME": str(caches), "HF_DATASETS_OFFLINE": "1", "HF_HUB_OFFLINE": "1"}


@pytest.fixture(scope="session")
def run(home):
    def run(*command):
        done = subprocess.run(
            [sys.executable, *map(str, command)], capture_output=True, text=True, check=False, env=home
        )
        return SimpleNamespace(code=done.returncode, said=done.stdout + done.stderr)

    return run


@pytest.fixture(scope="session")
def evaluate(run, tasks_folder):
    """lmms-eval's command on the local task: its exit code and text, and what it wrote."""

    def evaluate(out, arguments, *more, processes=1, task="local_where"):
        torchrun = ["-m", "torch.distributed.run", "--nproc-per-node", processes] if processes > 1 else []
        found = run(
            *torchrun, "-m", "lmms_eval", "--model", "tokentrim", "--model_args", arguments, "--tasks", task,
            "--include_path", tasks_folder, "--output_path", out, "--log_samples", *more,
        )  # fmt: skip
        found.files = sorted(out.rglob("*.json*")) if out.exists() else []
        found.read = lambda end: [json.loads(line) for line in lines(found.files, end)]
        return found

    def lines(files, end):
        (path,) = (path for path in files if path.name.endswith(end))
        text = path.read_text()
        return [text] if path.suffix == ".json" else text.splitlines()

    return evaluate
