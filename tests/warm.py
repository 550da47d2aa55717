"""Processes for tests, forked from one that has imported what is slow to import: seconds less for each.

They are fresh in all that is tokentrim's: what is imported before them is torch, transformers and what draws reports.
"""

from __future__ import annotations

import multiprocessing
import os
import runpy
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from multiprocessing.context import ForkServerContext
from multiprocessing.forkserver import ensure_running
from pathlib import Path
from typing import Any

_SLOW = (
    "torch", "torch.distributed.launcher.api", "transformers.processing_utils", "transformers.modeling_utils",
    "transformers.models.llava.modeling_llava", "transformers.models.llama.modeling_llama",
    "transformers.models.clip.modeling_clip", "matplotlib.backends.backend_agg", "scipy.stats",
    "statsmodels.stats.multitest", "pandas", "jinja2", "typer", "pydantic", "safetensors.torch",
)  # fmt: skip


def context() -> ForkServerContext:
    """Makes such processes; one server for all tests of this process."""
    made = multiprocessing.get_context("forkserver")
    made.set_forkserver_preload(list(_SLOW))
    ensure_running()
    return made


def process(target: Callable[..., object], *given: Any) -> Any:
    """One that runs ``target`` with this process's variables; not yet started."""
    return context().Process(target=_enter, args=(dict(os.environ), os.getcwd(), target, given))


class Spawning(ForkServerContext):
    """In the place of multiprocessing's ``spawn``, for code that asks for it."""

    def Process(self, *, target: Any, args: Sequence[Any] = (), daemon: bool | None = None, **more: Any) -> Any:  # type: ignore[override]
        made = process(target, *args)
        made.daemon = daemon
        return made


def start(command: Sequence[str], out: Path, env: Mapping[str, str] | None = None, cwd: Path | None = None) -> Any:
    """A process that runs ``[sys.executable, "-m", module, ...]`` or ``[sys.executable, "-c", code]``, started.

    What it prints goes to the files ``out``.out and ``out``.err.
    """
    assert command[0] == sys.executable
    assert command[1] in ("-m", "-c")
    made = context().Process(
        target=_command, args=(dict(os.environ if env is None else env), str(cwd or Path.cwd()), command[1:], str(out))
    )
    made.start()
    return made


def run(
    command: Sequence[str], *, env: Mapping[str, str] | None = None, cwd: Path | None = None, **like: Any
) -> subprocess.CompletedProcess[str]:
    """As ``subprocess.run`` with its output captured as text."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "said")
        made = start(command, out, env, cwd)
        made.join(like.get("timeout"))
        assert made.exitcode is not None, f"still running: {command}"
        said = [out.with_suffix(suffix).read_text(encoding="utf-8") for suffix in (".out", ".err")]
        return subprocess.CompletedProcess(list(command), made.exitcode, *said)


def ranks(number: int, command: Sequence[str], *, env: Mapping[str, str]) -> list[subprocess.CompletedProcess[str]]:
    """The same command in as many processes, each told which one it is, as torchrun does."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    everyone = {"WORLD_SIZE": str(number), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}

    def one(rank: int) -> subprocess.CompletedProcess[str]:
        return run(command, env={**env, **everyone, "RANK": str(rank), "LOCAL_RANK": str(rank)}, timeout=480)

    context()  # before there are threads
    with ThreadPoolExecutor(number) as pool:
        return list(pool.map(one, range(number)))


def _enter(variables: Mapping[str, str], folder: str, target: Callable[..., object], given: Sequence[Any]) -> None:
    """Become a process of these variables, in this folder."""
    os.environ.clear()
    os.environ.update(variables)
    os.chdir(folder)
    target(*given)


def _command(variables: Mapping[str, str], folder: str, words: Sequence[str], out: str) -> None:
    for number, suffix in ((1, ".out"), (2, ".err")):
        os.dup2(os.open(f"{out}{suffix}", os.O_CREAT | os.O_WRONLY | os.O_APPEND), number)
    kind, what, *arguments = words
    sys.argv = [kind, *arguments]
    sys.path[:0] = ["", *(path for path in variables.get("PYTHONPATH", "").split(os.pathsep) if path)]
    if kind == "-m":
        _enter(variables, folder, partial(runpy.run_module, what, run_name="__main__", alter_sys=True), ())
    else:
        _enter(variables, folder, exec, (what, {"__name__": "__main__"}))
