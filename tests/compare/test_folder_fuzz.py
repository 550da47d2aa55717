"""Results folders that anything may have happened to: refused by name or reported, and never with a traceback."""

import json
import random
import shutil

import pytest
from hypothesis import given, settings, strategies as st
from typer.testing import CliRunner

from tokentrim.cli.app import app

CONFIG = """
models: [testbed-plain]
tasks: [where]
samples: 2
strategies: [none, random]
budgets: [0.5]
text_only: false
controls: []
timing: false
"""
SHOWN = ("--format", "csv,md,html")
NASTY = (
    None, True, -1, 0, 7, 1.5, 99, 10**9, 10**18, 10**30, 1e308, "", "x", "0-999999999", "\u2028", "=1+1", "none",
    "javascript:alert(1)", "http://127.0.0.1/a.png", "data:image/png;base64,AAAA", [], {}, [[]], [None], {"a": []},
)  # fmt: skip
RAW = ("NaN", "-Infinity", "1e400", "9" * 5000, '"\\ud800"', "[" * 3000, "[" * 100 + "]" * 100, '"\x85"', "{", "")
MARK = "a mark that nobody writes"


def cli(*arguments):
    """Exit code and output of a command; what it raises is an error of the test."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code in (0, 1, 2), result.output
    assert result.exit_code != 2 or "error: " in result.output
    return result


@pytest.fixture(scope="module")
def pristine(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fuzz")
    (folder / "c.yaml").write_text(CONFIG)
    assert cli("compare", folder / "c.yaml", "--out", folder / "run", *SHOWN).exit_code == 0
    return folder / "run"


def places(value, path=()):
    """Every path into plain data."""
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield from places(item, (*path, key))


def mutate(rng, folder):
    """Let something happen to one file; returns it and what was done."""
    files = sorted(path for path in folder.rglob("*.json*") if path.is_file())
    file = rng.choice(files)
    data = file.read_bytes()
    kind = rng.choice(["cut", "flip", "delete", "folder", "swap", "insert", "value", "value", "value", "raw", "lines"])
    if kind == "cut":
        file.write_bytes(data[: rng.randrange(len(data))])
    elif kind == "flip":
        place = rng.randrange(len(data))
        file.write_bytes(data[:place] + bytes([rng.randrange(256)]) + data[place + 1 :])
    elif kind == "insert":
        place = rng.randrange(len(data))
        inserted = rng.choice([b"\xff", b"\x00", b"\xed\xa0\x80", b"\n", b"\xe2\x80\xa8"])
        file.write_bytes(data[:place] + inserted + data[place:])
    elif kind in ("delete", "folder"):
        file.unlink()
        file.mkdir() if kind == "folder" else None
    elif kind == "swap":
        other = rng.choice(files)
        file.write_bytes(other.read_bytes())
        other.write_bytes(data)
    else:
        listed = data.decode(errors="replace").removesuffix("\n").split("\n") if file.suffix == ".jsonl" else [data]
        try:
            lines = [json.loads(line) for line in listed]
        except (ValueError, RecursionError):  # something has happened to it before
            lines = []
        if kind == "lines":
            lines = rng.choice([lines[1:], lines[:-1], lines + lines[-1:], lines[::-1]])
        else:
            path = rng.choice(list(places(lines)))
            value = rng.choice(NASTY) if kind == "value" else MARK
            target = lines
            for key in path[:-1]:
                target = target[key]
            if not path:
                lines = value
            elif rng.random() < 0.2 and isinstance(target, dict):
                del target[path[-1]]
            else:
                target[path[-1]] = value
        text = "\n".join(json.dumps(line) for line in lines) + "\n" if isinstance(lines, list) else json.dumps(lines)
        file.write_text(text.replace(f'"{MARK}"', rng.choice(RAW)), encoding="utf-8")
    return file, kind


def check(pristine, work, seed):
    """One mutation, then both commands that read the folder: exit codes, and cells that nothing happened to stay."""
    rng = random.Random(seed)
    shutil.rmtree(work, ignore_errors=True)
    shutil.copytree(pristine, work)
    changed = {mutate(rng, work)[0] for _ in range(rng.choice([1, 1, 1, 2]))}
    before = {path: path.read_bytes() for path in (work / "cells").iterdir() if path.is_file()}
    found = cli("report", work, *SHOWN), cli("compare", pristine.parent / "c.yaml", "--out", work, "--format", "csv")
    for path, content in before.items():
        assert found[1].exit_code == 0 or path in changed or path.read_bytes() == content
        assert path.is_file()
    assert not list(work.rglob("*.part*"))
    if found[0].exit_code == 0:
        images = json.loads((work / "gallery.json").read_text(encoding="utf-8"))["images"]
        assert all(one["src"].startswith("data:image/") for listed in images.values() for one in listed)
    return [one.exit_code for one in found]


@settings(max_examples=6, deadline=None, derandomize=True, database=None)
@given(seed=st.integers(0, 2**32))
def test_whatever_happens_to_a_folder_is_refused_or_reported(pristine, tmp_path_factory, seed):
    check(pristine, pristine.parent / "work", seed)
