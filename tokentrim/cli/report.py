"""``tokentrim report``: the report of a results folder once more, or several runs as one."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from tokentrim.cli import options
from tokentrim.cli.output import console, emit, facts, formats_of
from tokentrim.errors import ConfigError, ResultsError, complaint, suggestion


def report(
    folders: Annotated[list[Path], typer.Argument(metavar="DIR...", help="Results folders of 'tokentrim compare'.")],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Folder to write to; default: the results folder itself.")
    ] = None,
    formats: options.Format = None,
    allow_different: Annotated[
        list[str] | None,
        typer.Option(
            help="Let merged runs differ in models, tasks, versions, placement (device, number format, batch size) or "
            "statistics; the report then says so on top. Repeatable."
        ),
    ] = None,
    as_json: options.AsJson = False,
) -> None:
    """Write the report of a results folder anew, or merge several runs into one report.

    Nothing is run again. Runs that differ in what may change a score are refused.
    """
    from tokentrim.compare.report import publish, require_formats

    wanted = require_formats(formats_of(formats))
    from tokentrim.compare.merge import KINDS, merge
    from tokentrim.compare.readback import read_runs, rendering
    from tokentrim.compare.summary import Summary
    from tokentrim.runs.files import make_folder

    for kind in allow_different or ():
        if kind not in KINDS:
            raise ConfigError(
                complaint("--allow-different", "name a kind of difference", kind, suggestion(kind, KINDS))
            )
    runs = read_runs(folders)
    target = _target(folders, out)
    data, gallery = runs[0].data, runs[0].gallery
    with rendering(runs):
        if len(runs) > 1:
            command = shlex.join(["tokentrim", *sys.argv[1:]])
            data, gallery = merge(runs, allow_different or (), command)
        make_folder(target)
        summary = publish(Summary(target, data), gallery, wanted)
    if as_json:
        emit({name: str(path) for name, path in summary.files.items()})
        return
    facts(console(), summary.files, 8)


def _target(folders: list[Path], out: Path | None) -> Path:
    """The folder to write to.

    Raises:
        ConfigError: when several runs have no folder of their own to be merged into.
        ResultsError: when that folder holds a run.
    """
    if len(folders) == 1:
        return out or folders[0]
    if out is None:
        raise ConfigError(complaint("a report of several runs", "have a folder of its own", hint="add --out DIR"))
    if (out / "cells").exists():
        raise ResultsError(
            complaint("--out of a report of several runs", "be a folder without a run in it", str(out),
                      "choose another")
        )  # fmt: skip
    return out
