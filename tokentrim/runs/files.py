"""All files of runs: read as what we wrote or refused by name, written whole or not at all.

So a run may be killed at any moment; what it was writing then is cleared away when a folder is opened again.
"""

from __future__ import annotations

import json
import os
import re
import socket
import time
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, Final
from zlib import crc32

from tokentrim.errors import ResultsError, complaint, shown
from tokentrim.reading import regular

_HOST: Final = f"{crc32(socket.gethostname().encode()):08x}"
_PART: Final = re.compile(r"\..+\.([0-9a-f]{8})\.(\d{1,9})\.part(\.\w+)?")
_PATIENCE: Final = 3600.0  # seconds without a change after which nobody is writing a file any more
_DEEPEST: Final = 64  # levels of a file; ours have a dozen
_LONGEST_CAUSE: Final = 300  # characters
_WIDEST: Final = 2**64  # our whole numbers are bytes, counts and seeds
_BEING_WRITTEN: Final[set[str]] = set()


def make_folder(path: Path, whom: str = "the folder") -> None:
    """Make a folder and those above it; what one holds that is there stays, but for what killed writers left.

    Raises:
        ResultsError: when it cannot be made, or no file can be written in it.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=path):
            pass
        clear(path)
    except OSError as cause:
        raise ResultsError(complaint(f"{whom} {path}", "be writable", hint=f"{cause}; choose another --out")) from cause


def clear(folder: Path) -> None:
    """Remove half-written files of ours from a folder that may not be there, but those that a living process writes."""
    with suppress(OSError):
        for path in folder.iterdir():
            found = _PART.fullmatch(path.name)
            if found is not None and not _is_written(path, found[1], int(found[2])):
                path.unlink(missing_ok=True)


def _is_written(path: Path, host: str, pid: int) -> bool:
    """Whether the process that began a file may still be at it."""
    with suppress(FileNotFoundError):
        if time.time() - path.stat().st_mtime > _PATIENCE:
            return False
    if host != _HOST:
        return True
    if pid == os.getpid():  # it may be an earlier process's number
        return os.path.abspath(path) in _BEING_WRITTEN
    if os.name != "posix":  # elsewhere signal 0 is no question
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


@contextmanager
def reading(path: Path, remedy: str, *more: type[Exception]) -> Generator[None]:
    """Turn whatever reading a foreign or damaged file raises, ``more`` included, into a ResultsError with a remedy."""
    try:
        yield
    except OSError as cause:
        raise ResultsError(complaint(f"{path}", "be readable", hint=f"{cause}; {remedy}")) from cause
    except (ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError, *more) as cause:
        said = " ".join(f"{type(cause).__name__}: {cause}".split())[:_LONGEST_CAUSE].rstrip(". ")
        raise ResultsError(complaint(f"{path}", "be what tokentrim wrote there", hint=f"{said}; {remedy}")) from cause


def read_json(path: Path, remedy: str) -> dict[str, Any]:
    """The JSON object in a file of ours.

    Raises:
        ResultsError: when it is not there, is no regular file or not what we would write: UTF-8, finite numbers,
            text without halves of characters, a few levels; says what to do.
    """
    with reading(path, remedy):
        return _object(_text(path))


def read_lines(path: Path, remedy: str) -> list[dict[str, Any]]:
    """The JSON objects in a file of ours, one a line; which ends at a line feed alone: texts may hold other ends.

    Raises:
        ResultsError: as :func:`read_json`.
    """
    with reading(path, remedy):
        return [_object(line) for line in _text(path).removesuffix("\n").split("\n")]


def _text(path: Path) -> str:
    return regular(path).read_bytes().decode()


def _object(text: str) -> dict[str, Any]:
    found = json.loads(text, parse_constant=_refused, parse_float=_finite, parse_int=_whole)
    if not isinstance(found, dict):
        raise TypeError(f"it must hold a JSON object, and is {shown(found)}")
    _require_plain(found, _DEEPEST)
    return found


def _require_plain(value: Any, levels: int) -> None:
    """Raise ValueError for a level too many, or text that UTF-8 cannot hold: JSON can write half a character."""
    if not levels:
        raise ValueError(f"it has more than {_DEEPEST} levels")
    if isinstance(value, str):
        if not value.isascii():
            value.encode()
    elif isinstance(value, dict):
        for key, item in value.items():
            _require_plain(key, levels)
            _require_plain(item, levels - 1)
    elif isinstance(value, list):
        for item in value:
            _require_plain(item, levels - 1)


def _refused(word: str) -> float:
    raise ValueError(f"{word} is no JSON")


def _finite(word: str) -> float:
    number = float(word)
    if abs(number) == float("inf"):
        raise ValueError(f"{word} is beyond what a number holds")
    return number


def _whole(word: str) -> int:
    number = int(word)
    if abs(number) > _WIDEST:
        raise ValueError(f"{shown(word)} is beyond what tokentrim counts")
    return number


def plain_lines(lines: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Objects as they would be read from a file's lines.

    Raises:
        ValueError, TypeError, RecursionError: when they hold what JSON or UTF-8 cannot.
    """
    return [_object(json.dumps(line, ensure_ascii=False, allow_nan=False)) for line in lines]


def write_lines(path: Path, lines: Iterable[dict[str, Any]]) -> None:
    """Write JSON lines, whole or not at all."""
    with _holding(path):
        text = "".join(json.dumps(line, ensure_ascii=False, allow_nan=False) + "\n" for line in lines)
    write_text(path, text)


def write_json(path: Path, data: dict[str, Any]) -> None:
    """Write one JSON object, whole or not at all."""
    with _holding(path):
        text = json.dumps(data, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    write_text(path, text)


def write_text(path: Path, text: str) -> None:
    """Write a text, whole or not at all."""
    with _holding(path):
        data = text.encode()
    write_atomic(path, lambda part: part.write_bytes(data))


@contextmanager
def _holding(path: Path) -> Generator[None]:
    """Name the file whose content cannot be written: a number that JSON lacks, half a character, an odd object."""
    try:
        yield
    except (ValueError, TypeError, RecursionError) as cause:
        raise ResultsError(
            complaint(f"what goes into {path}", "be what JSON in UTF-8 can hold", hint=str(cause))
        ) from cause


def write_atomic(path: Path, write: Callable[[Path], object]) -> None:
    """Let ``write`` fill a file beside ``path``, then put it in place; a reader sees the old or the new one.

    Raises:
        ResultsError: when the file cannot be written.
    """
    # Host and process keep two runs in one folder from writing the same file, and say later who left one behind.
    part = path.with_name(f".{path.name}.{_HOST}.{os.getpid()}.part{path.suffix}")
    mark = os.path.abspath(part)
    _BEING_WRITTEN.add(mark)
    try:
        write(part)
        with part.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(part, path)
    except OSError as cause:
        raise ResultsError(complaint(f"{path}", "be writable", hint=f"{cause}; mend that, then run again")) from cause
    finally:
        with suppress(OSError):
            part.unlink(missing_ok=True)
        _BEING_WRITTEN.discard(mark)
