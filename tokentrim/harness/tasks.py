"""The family ``lmms:NAME``: tasks of lmms-eval in a comparison, with its documents, prompts and scores.

``lmms:gqa`` is a task of lmms-eval's own collection, ``lmms:folder/mine.yaml`` one in a file. A task has one main
metric, the first that it lists; ``lmms:mme@mme_cognition_score`` chooses another. lmms-eval is imported when the first
of these names is asked for. Whether data may be downloaded is up to the Hugging Face libraries' own settings
(``HF_HUB_OFFLINE``).
"""

from __future__ import annotations

import hashlib
import importlib
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final

from tokentrim.errors import ConfigError, DataError, UnknownNameError, UnsupportedError, complaint, nearest, reason_of
from tokentrim.harness.lmms_task import LmmsTask
from tokentrim.plugins.registry import Family

_DISTRIBUTION: Final = "lmms_eval"
_FILE: Final = (".yaml", ".yml")
_MODEL: Final = "tokentrim"  # tasks may write other prompts for some models; they know ours by this name
_SHOWN: Final = 300


class LmmsTasks(Family):
    """Tasks of lmms-eval, by name or YAML file, each perhaps with ``@`` and a metric."""

    def origin(self, rest: str) -> tuple[str, str]:
        """Lmms-eval and its version; of a task in a file also what the file and its neighbours say.

        Raises:
            UnsupportedError: when lmms-eval is not installed.
            UnknownNameError: when it has no such task; names the nearest.
        """
        name, _ = split_metric(rest)
        with _quiet():
            number = _installed()
            if _is_file(name):
                return _DISTRIBUTION, f"{number}+{_digest(_file(name))}"
            _require_known(name)
        return _DISTRIBUTION, number

    def get(self, rest: str) -> LmmsTask:
        """The task, with its documents.

        Raises:
            UnsupportedError, UnknownNameError: as :meth:`origin`.
            DataError: when its data is not here.
            ConfigError: when it does not ask for answers, or has no such metric.
        """
        name, metric = split_metric(rest)
        with _quiet():
            _installed()
            return LmmsTask(f"lmms:{rest}", _load(name, f"lmms task {name!r}"), metric)


LMMS: Final = LmmsTasks()


def split_metric(rest: str) -> tuple[str, str | None]:
    """``name@metric`` as its two parts.

    Raises:
        ConfigError: when one of them is empty.
    """
    name, at, metric = rest.partition("@")
    if not name or (at and not metric):
        raise ConfigError(
            complaint("a task of lmms-eval", "read lmms:NAME or lmms:NAME@METRIC", f"lmms:{rest}",
                      "such as lmms:gqa or lmms:mme@mme_perception_score")
        )  # fmt: skip
    return name, metric or None


def _installed() -> str:
    """Version of lmms-eval.

    Raises:
        UnsupportedError: when it is not installed, or cannot be imported.
    """
    try:
        number = version(_DISTRIBUTION)
        importlib.import_module("lmms_eval.tasks")
    except (PackageNotFoundError, ImportError, RuntimeError) as cause:
        # RuntimeError: what a torchvision raises that was built for another torch.
        raise UnsupportedError(
            complaint("tasks named lmms:NAME", "find lmms-eval installed", f"{type(cause).__name__}: {cause}",
                      "install it, pip install 'tokentrim-vlm[lmms]', in an environment of its own (docs/lmms-eval.md)")
        ) from cause  # fmt: skip
    return number


def _load(name: str, whom: str) -> Any:
    """lmms-eval's task object; loading it loads its data.

    Raises:
        TokentrimError: see :meth:`LmmsTasks.get`.
    """
    if _is_file(name):
        file = _file(name)
        manager = _index(include_path=str(file.parent), include_defaults=False)
        name = _name_in(file)
        if name not in manager.all_tasks:
            raise ConfigError(complaint(f"the task file {file}", "name its task", name, "add a line 'task: NAME'"))
    else:
        manager = _require_known(name)
    try:
        found: Mapping[Any, Any] = manager.load_task_or_group(name, "chat")
    except Exception as cause:  # whatever the dataset's loader raises, wrapped in the retries around it
        attempt = getattr(cause, "last_attempt", None)
        reason = attempt.exception() if attempt is not None else cause
        text = f"{type(reason).__name__}: {reason}"
        raise DataError(
            complaint(f"the data of {whom}", "be here", text if len(text) <= _SHOWN else f"{text[:_SHOWN]}...",
                      "download it once, with HF_HUB_OFFLINE unset, or give a task whose dataset_path is a local file")
        ) from cause  # fmt: skip
    (task,) = found.values()
    return task


def _require_known(name: str) -> Any:
    """lmms-eval's task manager, which knows a task of that name.

    Raises:
        UnknownNameError: when there is none; names the nearest.
        ConfigError: when the name is of a group of tasks; lists them.
    """
    manager = _own()
    kind = manager.task_index[name]["type"] if name in manager.all_tasks else None
    if kind is None:
        close = nearest(name, manager.all_subtasks)
        hint = f"did you mean 'lmms:{close}'? " if close else ""
        raise UnknownNameError(
            complaint("a task of lmms-eval", "be one that it knows", name,
                      f"{hint}'python -m lmms_eval --tasks list' lists all; a task in a file is named by its path")
        )  # fmt: skip
    if kind in ("group", "tag"):
        raise ConfigError(
            complaint(f"{kind} {name!r} of lmms-eval", "be given as its single tasks",
                      hint=f"list them one by one{_members(manager, name)}")
        )  # fmt: skip
    return manager


def _members(manager: Any, name: str) -> str:
    """The tasks of a group, as far as its own file lists them."""
    listed = manager.task_index[name].get("task")
    names = [f"lmms:{task}" for task in listed if isinstance(task, str)] if isinstance(listed, list) else []
    return f": {', '.join(sorted(names))}" if names else ""


@lru_cache(maxsize=1)
def _own() -> Any:
    """lmms-eval's index of its own tasks, which takes seconds to make."""
    return _index(include_defaults=True)


def _index(**options: Any) -> Any:
    tasks: Any = importlib.import_module("lmms_eval.tasks")
    return tasks.TaskManager("WARNING", model_name=_MODEL, **options)


def _is_file(name: str) -> bool:
    return name.endswith(_FILE)


def _file(name: str) -> Path:
    """A task's file.

    Raises:
        UnknownNameError: when it is not there.
    """
    path = Path(name).resolve()
    if not path.is_file():
        raise UnknownNameError(complaint("the file of a task of lmms-eval", "exist", name, "check the path"))
    return path


def _name_in(file: Path) -> str:
    """The name that a task file gives its task."""
    utils: Any = importlib.import_module("lmms_eval.utils")
    try:
        return str(utils.load_yaml_config(str(file), mode="simple").get("task", ""))
    except Exception as cause:  # whatever its reader makes of the file
        raise ConfigError(complaint(f"the task file {file}", "be YAML of a task", hint=reason_of(cause))) from cause


def _digest(file: Path) -> str:
    """Short hash of a task's file and of the code and templates beside it."""
    total = hashlib.sha256()
    for path in sorted(one for one in file.parent.iterdir() if one == file or (one.suffix == ".py" and one.is_file())):
        total.update(path.name.encode() + b"\0" + path.read_bytes())
    return total.hexdigest()[:12]


@contextmanager
def _quiet() -> Generator[None, None, None]:
    """lmms-eval's own log off while it loads: it speaks of every file that it reads."""
    try:
        logger: Any = importlib.import_module("loguru").logger
    except ImportError:
        yield
        return
    logger.disable("lmms_eval")
    try:
        yield
    finally:
        logger.enable("lmms_eval")
