"""A new plugin: what ``tokentrim new-plugin`` writes, and the rules of its names."""

from __future__ import annotations

import importlib.util
import io
import keyword
import os
import re
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path, PurePosixPath
from string import Template
from types import MappingProxyType
from typing import Final

from tokentrim.errors import ConfigError, DataError, UnknownNameError, complaint, unknown_name
from tokentrim.plugins.loader import registry

_NAME: Final = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")
_PICTURE: Final = ("testbed", "list-all")
"""The task whose first picture comes along, with its question; and the model that knows it."""


@dataclass(frozen=True)
class PluginKind:
    """One kind of strategy to begin with.

    Attributes:
        stage: where it acts.
        does: what it does, as a sentence goes on after its name.
        summary: the same for lists.
        methods: what an author writes.
        change_first: what an author changes first.
        others: published methods to compare with.
        match: the budget that a comparison brings every method to.
        match_says: what that is.
        tasks: tasks of a first comparison.
    """

    stage: str
    does: str
    summary: str
    methods: str
    change_first: str
    others: str
    match: str
    match_says: str
    tasks: str


_TOKENS: Final = ("layer_mean_ratio", "share of the visual tokens that an average layer processes")
_LOOKS: Final = "where, {task: list-all, samples: 10}"

KINDS: Final[Mapping[str, PluginKind]] = MappingProxyType(
    {
        "scorer": PluginKind(
            "prefill",
            "keeps the visual tokens whose features have the largest norm",
            "keep the visual tokens with the largest features",
            "`needs`, `schedule`, `score`",
            "`needs` and `score` (what is looked at, and what counts as important)",
            "uniform, fastv",
            *_TOKENS,
            _LOOKS,
        ),
        "selector": PluginKind(
            "prefill",
            "keeps the visual tokens whose features have the largest norm, and merges the others into them",
            "merge visual tokens into those with the largest features",
            "`needs`, `schedule`, `select`",
            "`select` (which tokens stay, and what becomes of the others)",
            "uniform, pool",
            *_TOKENS,
            _LOOKS,
        ),
        "temporal": PluginKind(
            "decode",
            "keeps, while the answer grows, the cached visual entries that it attends to the most",
            "evict cached visual entries that the answer does not attend to",
            "`needs`, `count`, `score`",
            "`count` and `score` (how many entries stay at which step, and which)",
            "vta",
            "kv_ratio",
            "share of the visual KV entries, mean over the answer",
            "{task: list-all, samples: 10}, {task: list-where, samples: 10}",
        ),
    }
)
"""The kinds of strategies that ``--kind`` offers."""

TASK: Final = "task"
"""The kind beside them."""
_TASK_WORDS: Final = {
    "noun": TASK,
    "does": "asks where an object is, and gives half a point for its row or its column alone",
    "summary": "where an object is, with half a point for its row or its column",
}


@dataclass(frozen=True)
class NewPlugin:
    """A plugin to be written.

    Attributes:
        name: of the distribution and its entry point.
        strategy: the name that it registers, of a strategy or a task.
        kind: a key of ``KINDS``, or ``TASK``.
    """

    name: str
    strategy: str
    kind: str = "scorer"

    @property
    def package(self) -> str:
        """Its import name."""
        return self.name.replace("-", "_")

    @property
    def class_name(self) -> str:
        """Name of the class."""
        return "".join(word.capitalize() for word in self.strategy.split("-"))

    def check(self) -> None:
        """Refuse names that could not be installed, imported or registered.

        Raises:
            ConfigError: for a name of the wrong form, or one that is taken; says by what.
            UnknownNameError: when there is no such kind.
        """
        if self.kind not in (*KINDS, TASK):
            raise unknown_name("kind of plugin", self.kind, (*KINDS, TASK))
        for name, what in ((self.name, "the name of a plugin"), (self.strategy, f"the name of its {self.noun}")):
            _check_form(name, what)
        _check_distribution(self.name)
        _check_module(self.package)
        _check_registered(self.strategy, self.noun)

    @property
    def noun(self) -> str:
        """The kind of thing that it registers."""
        return TASK if self.kind == TASK else "strategy"

    def try_it(self) -> str:
        """The command that runs the strategy on the picture that comes along, or asks a question of the task."""
        if self.kind == TASK:
            return f"tokentrim explain --task {self.strategy}:0 --strategy st3"
        question = _sample().question
        return (
            f'tokentrim run --config configs/{self.strategy}.yaml --image example.png --prompt "{question}" '
            "--overlay kept.png"
        )

    def files(self) -> dict[PurePosixPath, bytes]:
        """What the plugin consists of: path in its folder -> content."""
        words = {**vars(self), "package": self.package, "class_name": self.class_name, "noun": self.noun,
                 "module": self.strategy.replace("-", "_"), "try_it": self.try_it()}  # fmt: skip
        if self.kind == TASK:
            return self._task_files({**words, **_TASK_WORDS})
        words |= vars(KINDS[self.kind])
        texts = {
            "pyproject.toml": _text("pyproject.toml", words),
            "README.md": _text("README.md", words),
            ".gitignore": _text("gitignore", words),
            f"{self.package}/__init__.py": _text("init.py", words),
            f"{self.package}/strategy.py": _text(f"{self.kind}.py", words),
            f"{self.package}/py.typed": "",
            f"configs/{self.strategy}.yaml": _text("config.yaml", words),
            "configs/compare.yaml": _text("compare.yaml", words),
            f"tests/test_{words['module']}.py": _text("test_head.py", words) + _text(f"test_{self.kind}.py", words),
        }
        made = {PurePosixPath(path): text.encode() for path, text in texts.items()}
        return {**made, PurePosixPath("example.png"): _picture()}

    def _task_files(self, words: Mapping[str, object]) -> dict[PurePosixPath, bytes]:
        texts = {
            "pyproject.toml": _text("pyproject.toml", words),
            "README.md": _text("task_README.md", words),
            ".gitignore": _text("gitignore", words),
            f"{self.package}/__init__.py": _text("task_init.py", words),
            f"{self.package}/task.py": _text("task.py", words),
            f"{self.package}/py.typed": "",
            "configs/compare.yaml": _text("task_compare.yaml", words),
            f"tests/test_{words['module']}.py": _text("test_task.py", words),
        }
        return {PurePosixPath(path): text.encode() for path, text in texts.items()}

    def write(self, folder: Path) -> list[Path]:
        """Write the plugin into a folder that is new or empty; whole, or not at all.

        Returns:
            The files, in order of their paths.

        Raises:
            DataError: when the folder holds something, or cannot be written.
        """
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise DataError(
                complaint("the folder of a new plugin", "be new or empty", str(folder),
                          f"nothing is overwritten: choose another one, such as --out {folder / self.name}")
            )  # fmt: skip
        files = self.files()
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            # Beside its place, so that a rename moves it there in one step.
            made = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
        except OSError as cause:
            raise DataError(complaint("the folder of a new plugin", "be writable", str(folder), str(cause))) from cause
        try:
            for path, content in files.items():
                (made / path).parent.mkdir(parents=True, exist_ok=True)
                (made / path).write_bytes(content)
            made.chmod(0o777 & ~_umask())
            if folder.exists():
                folder.rmdir()
            made.rename(folder)
        except OSError as cause:
            raise DataError(complaint("the folder of a new plugin", "be writable", str(folder), str(cause))) from cause
        finally:
            shutil.rmtree(made, ignore_errors=True)
        return sorted(folder / path for path in files)


def _text(template: str, words: Mapping[str, object]) -> str:
    """A template with its words filled in."""
    file = resources.files("tokentrim.cli.scaffold") / "templates" / f"{template}.tmpl"
    return Template(file.read_text(encoding="utf-8")).substitute(words)


def _sample():  # noqa: ANN202  # the type is the testbed's
    """The first question of the task whose picture comes along."""
    return registry("task").get(_PICTURE[1]).samples("test", 1)[0]


def _picture() -> bytes:
    """The picture of that question, as a PNG."""
    buffer = io.BytesIO()
    _sample().images[0].save(buffer, format="PNG")
    return buffer.getvalue()


def _umask() -> int:
    """The process's mask of permissions, which can only be read by setting it."""
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _check_form(name: str, what: str) -> None:
    if not _NAME.fullmatch(name):
        better = re.sub(r"[^a-z0-9]+", "-", re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "-", name).lower()).strip("-0123456789")
        hint = f"write {better}" if _NAME.fullmatch(better) else "such as my-pruner"
        raise ConfigError(
            complaint(
                what, "consist of lower-case words, joined by single hyphens, and begin with a letter", name, hint
            )
        )


def _check_distribution(name: str) -> None:
    try:
        found = distribution(name)
    except PackageNotFoundError:
        return
    hint = f"{found.name} {found.version} is installed: choose another name"
    raise ConfigError(complaint("the name of a plugin", "be free", name, hint))


def _check_module(package: str) -> None:
    if keyword.iskeyword(package) or keyword.issoftkeyword(package):
        raise ConfigError(complaint("the name of a plugin", "be no word of Python", package, "choose another name"))
    found = importlib.util.find_spec(package)
    if found is not None and found.origin is not None:  # a mere folder of that name is no module
        hint = f"import {package} finds {found.origin}: choose another name"
        raise ConfigError(complaint("the import name of a plugin", "be free", package, hint))


def _check_registered(name: str, kind: str) -> None:
    try:
        entry = registry(kind).entry(name)
    except UnknownNameError:
        return
    hint = f"it is registered by {entry.origin}: choose another one with --strategy"
    raise ConfigError(complaint(f"the name of its {kind}", "be free", name, hint))
