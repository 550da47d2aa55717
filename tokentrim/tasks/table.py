"""Tables of questions as people keep them: JSON lines, a JSON list, CSV, TSV, parquet; a folder with one of these."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Final

from tokentrim.errors import DataError, UnsupportedError, complaint, reason_of, shown
from tokentrim.reading import regular
from tokentrim.tasks.names import ENDINGS

_IN_FOLDERS: Final = ("questions", "metadata")
_MOST_BYTES: Final = 1 << 30
_LISTS_IN_CELLS: Final = ("images", "file_names", "videos", "answers", "choices", "messages")


@dataclass(frozen=True)
class Row:
    """One row of a table.

    Attributes:
        place: file and line, for messages: ``mine.jsonl:7``; entries of JSON and parquet are counted from 1.
        values: by column; what is null, and empty cells of CSV, are left out.
        problem: why the line is no row; "" where it is one.
    """

    place: str
    values: dict[str, Any]
    problem: str = ""


def table_file(path: Path) -> Path:
    """The file that is meant: the path, or the one named questions or metadata in a folder.

    Raises:
        DataError: when there is none, or several.
    """
    if not path.is_dir():
        return path
    found = [path / f"{name}{ending}" for name in _IN_FOLDERS for ending in ENDINGS]
    found = [file for file in found if file.is_file()]
    if len(found) == 1:
        return found[0]
    must = f"hold one file of questions, {' or '.join(_IN_FOLDERS)} with one of the endings {', '.join(ENDINGS)}"
    raise DataError(complaint(f"the folder {path}", must, [file.name for file in found], "or name the file itself"))


def read_table(path: Path) -> list[Row]:
    """The lines of a table in their order.

    Raises:
        DataError: when the file is missing or is no table at all.
        UnsupportedError: for parquet without pyarrow.
    """
    try:
        regular(path, _MOST_BYTES)
        if path.suffix == ".parquet":
            return _parquet(path)
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError as cause:
        raise DataError(
            complaint("the file of questions", "exist", str(path),
                      f"relative paths are meant from {Path.cwd()}, or from beside the configuration file")
        ) from cause  # fmt: skip
    except (OSError, UnicodeDecodeError) as cause:
        raise DataError(complaint("the file of questions", "be readable UTF-8 text", str(path), str(cause))) from cause
    if path.suffix in (".csv", ".tsv"):
        return _separated(path, text)
    return _json_list(path, text) if path.suffix == ".json" else _json_lines(path, text)


def _json_lines(path: Path, text: str) -> list[Row]:
    rows: list[Row] = []
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            place = f"{path}:{number}"
            try:
                rows.append(_row(place, json.loads(line)))
            except json.JSONDecodeError as cause:
                said = f"{cause.msg} at column {cause.colno}"
                rows.append(Row(place, {}, f"the line must be one JSON object; it has {said}"))
    return rows


def _json_list(path: Path, text: str) -> list[Row]:
    try:
        listed: Any = json.loads(text)
    except json.JSONDecodeError as cause:
        hint = f"{cause.msg}; a file with one JSON object on each line ends in .jsonl"
        raise DataError(complaint(f"{path}:{cause.lineno}: the file", "be JSON", hint=hint)) from cause
    if not isinstance(listed, list):
        raise DataError(complaint(f"{path}: the file", "be a list of objects", type(listed).__name__))
    return [_row(f"{path}, entry {number}", item) for number, item in enumerate(listed, 1)]


def _row(place: str, values: Any) -> Row:
    if not isinstance(values, dict):
        return Row(place, {}, f'a question must be an object such as {{"image": ...}}; got {shown(values)}')
    return Row(place, {str(name): value for name, value in values.items() if value is not None})


def _separated(path: Path, text: str) -> list[Row]:
    """Cells with several values are JSON lists, or have | between them."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter="\t" if path.suffix == ".tsv" else ",", strict=True)
    rows: list[Row] = []
    header: list[str] | None = None
    for number, cells in _records(path, reader):
        if header is None:
            header = [name.strip() for name in cells]
        elif any(cells):
            rows.append(_cells(f"{path}:{number}", header, cells))
    return rows


def _cells(place: str, header: Sequence[str], cells: Sequence[str]) -> Row:
    if len(cells) != len(header):
        return Row(place, {}, f"the line must have {len(header)} cells, as the first; got {len(cells)}")
    try:
        return Row(place, {name: _cell(name, cell) for name, cell in zip(header, cells, strict=True) if cell})
    except json.JSONDecodeError as cause:
        return Row(place, {}, f"a cell that begins with [ must be a JSON list: {cause.msg}")


def _cell(name: str, cell: str) -> Any:
    if name not in _LISTS_IN_CELLS:
        return cell
    return json.loads(cell) if cell.lstrip().startswith("[") else [part.strip() for part in cell.split("|")]


def _records(path: Path, reader: Any) -> Iterator[tuple[int, list[str]]]:
    """Records of a CSV with the line on which each begins.

    Raises:
        DataError: when quotes do not close.
    """
    begin = 1
    try:
        for cells in reader:
            yield begin, cells
            begin = reader.line_num + 1
    except csv.Error as cause:
        raise DataError(
            complaint(f"{path}:{begin}: the line", "be well-formed CSV", hint=f"{cause}; are its quotes closed?")
        ) from cause


def _parquet(path: Path) -> list[Row]:
    """Rows of a parquet file.

    Raises:
        UnsupportedError: without pyarrow.
        DataError: when it is none.
    """
    try:
        parquet: Any = import_module("pyarrow.parquet")
    except ImportError as cause:
        raise UnsupportedError(
            complaint(f"questions in {path}", "find pyarrow installed", hint="pip install 'tokentrim-vlm[parquet]'")
        ) from cause
    try:
        listed: list[Any] = parquet.read_table(path).to_pylist()
    except Exception as cause:  # whatever its reader makes of the file
        raise DataError(complaint("the file of questions", "be parquet", str(path), reason_of(cause))) from cause
    return [_row(f"{path}, row {number}", values) for number, values in enumerate(listed, 1)]
