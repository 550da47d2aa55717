"""Files that appear whole or not at all, so that a run may be killed at any moment."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tokentrim.errors import ResultsError, complaint


def make_folder(path: Path, whom: str = "the folder") -> None:
    """Make a folder and those above it; what one holds that is there stays.

    Raises:
        ResultsError: when it cannot be made, or no file can be written in it.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as cause:
        raise ResultsError(complaint(f"{whom} {path}", "be writable", hint=f"{cause}; choose another --out")) from cause


@contextmanager
def reading(path: Path, remedy: str, *more: type[Exception]) -> Generator[None]:
    """Turn whatever reading a foreign or damaged file raises, ``more`` included, into a ResultsError with a remedy."""
    try:
        yield
    except OSError as cause:
        raise ResultsError(complaint(f"{path}", "be readable", hint=f"{cause}; {remedy}")) from cause
    except (ValueError, KeyError, TypeError, AttributeError, *more) as cause:
        raise ResultsError(
            complaint(f"{path}", "be what tokentrim wrote there", hint=f"{cause!r}; {remedy}")
        ) from cause


def write_lines(path: Path, lines: Iterable[dict[str, Any]]) -> None:
    """Write JSON lines, whole or not at all."""
    write_text(path, "".join(json.dumps(line, ensure_ascii=False, allow_nan=False) + "\n" for line in lines))


def write_json(path: Path, data: dict[str, Any]) -> None:
    """Write one JSON object, whole or not at all."""
    write_text(path, json.dumps(data, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a text, whole or not at all."""
    write_atomic(path, lambda part: part.write_text(text, encoding="utf-8"))


def write_atomic(path: Path, write: Callable[[Path], object]) -> None:
    """Let ``write`` fill a file beside ``path``, then put it in place; a reader sees the old or the new one.

    Raises:
        ResultsError: when the file cannot be written.
    """
    # The process number keeps two runs in one folder from writing the same temporary file.
    part = path.with_name(f".{path.name}.{os.getpid()}.part{path.suffix}")
    try:
        write(part)
        with part.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(part, path)
    except OSError as cause:
        raise ResultsError(complaint(f"{path}", "be writable", hint=f"{cause}; free space, then run again")) from cause
    finally:
        part.unlink(missing_ok=True)
