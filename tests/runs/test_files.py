"""Our files: read whole or refused by name, and no trace of killed writers."""

import json
import os
import socket
import subprocess
import sys
import time
from zlib import crc32

import pytest

from tokentrim.errors import ResultsError
from tokentrim.runs.files import clear, make_folder, read_json, read_lines, write_atomic, write_json, write_lines

# Whatever Python, JSON, terminals or browsers take for the end of a line.
ENDS = "".join(map(chr, (0x0A, 0x0B, 0x0C, 0x0D, 0x1C, 0x1D, 0x1E, 0x85, 0x2028, 0x2029)))


def test_a_line_ends_where_we_end_it_alone(tmp_path):
    lines = [{"a": f"x{end}y"} for end in ENDS] + [{"b": ENDS}]
    write_lines(tmp_path / "a.jsonl", lines)
    assert read_lines(tmp_path / "a.jsonl", "again") == lines
    write_json(tmp_path / "a.json", lines[-1])
    assert read_json(tmp_path / "a.json", "again") == lines[-1]


@pytest.mark.parametrize(
    "content",
    [b"", b"\n", b"{", b"[]", b"3", b'{"a": NaN}', b'{"a": -Infinity}', b'{"a": 1e400}', b'{"a": ' + b"9" * 5000 + b"}",
     b'{"a": ' + b"9" * 30 + b"}", b'{"a": "\xff"}', b'{"a": "\\ud800"}', b'{"\\udfff": 1}', b'\xef\xbb\xbf{"a": 1}',
     b'{"a": ' + b"[" * 70 + b"]" * 70 + b"}", b'{"a": ' + b"[" * 200_000, b'{"a": 1}\r\n\n'],
    ids=lambda content: repr(content[:24]),
)  # fmt: skip
def test_what_we_do_not_write_is_refused_by_name(tmp_path, content):
    path = tmp_path / "cell.jsonl"
    path.write_bytes(content)
    for read in (read_json, read_lines):
        if read is read_json and content.endswith(b"\r\n\n"):
            continue
        with pytest.raises(
            ResultsError, match=r"cell\.jsonl must be what tokentrim wrote there\..*; remove it\."
        ) as found:
            read(path, "remove it")
        assert len(str(found.value)) < 500


@pytest.mark.parametrize("kind", ["folder", "pipe", "nothing", "loop"])
def test_what_is_no_file_is_refused_by_name(tmp_path, kind):
    path = tmp_path / "config.json"
    make = {"folder": path.mkdir, "pipe": lambda: os.mkfifo(path), "loop": lambda: path.symlink_to(path)}
    make.get(kind, lambda: None)()
    with pytest.raises(ResultsError, match=r"config\.json must be readable"):
        read_json(path, "remove it")


@pytest.mark.parametrize(
    "value", [float("nan"), float("inf"), "\ud800", {1, 2}, object()], ids=str.split("nan inf surrogate set object")
)
def test_what_no_file_holds_is_not_written(tmp_path, value):
    for write in (write_json, lambda path, data: write_lines(path, [data])):
        with pytest.raises(ResultsError, match=r"what goes into .*a\.json must be what JSON in UTF-8 can hold"):
            write(tmp_path / "a.json", {"a": value})
    assert not list(tmp_path.iterdir())


def test_a_place_that_is_taken_is_refused_and_left(tmp_path):
    (tmp_path / "a.json").mkdir()
    with pytest.raises(ResultsError, match=r"a\.json must be writable"):
        write_json(tmp_path / "a.json", {})
    with pytest.raises(ResultsError, match="must be writable"):
        write_json(tmp_path / ("n" * 300), {})
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


def test_what_killed_writers_left_goes_and_nothing_else(tmp_path):
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    here = f"{crc32(socket.gethostname().encode()):08x}"
    dead = [f".a.jsonl.{here}.{gone.pid}.part.jsonl", f".b.{here}.{os.getpid()}.part", ".c.json.00000000.7.part.json"]
    kept = [f".a.jsonl.{here}.{os.getppid()}.part.jsonl", ".d.json.00000000.7.part.json", ".e.part", "f.part.jsonl",
            f"a.jsonl.{here}.{gone.pid}.part.jsonl"]  # fmt: skip
    for name in (*dead, *kept):
        (tmp_path / name).write_text("half")
    os.utime(tmp_path / dead[-1], (time.time() - 7200,) * 2)

    def write(part):
        part.write_text("{}")
        clear(tmp_path)  # as another run that opens the folder meanwhile

    write_atomic(tmp_path / "g.json", write)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*kept, "g.json"])
    make_folder(tmp_path)
    clear(tmp_path / "not there")
    assert json.loads((tmp_path / "g.json").read_text()) == {}
