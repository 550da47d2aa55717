"""``tokentrim new-plugin``: a complete package of one's own to begin with."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from tokentrim.cli import options
from tokentrim.cli.output import console, emit


def new_plugin(
    name: Annotated[str, typer.Argument(help="Of the package, and of its strategy or task: such as my-pruner.")],
    kind: Annotated[
        str,
        typer.Option(
            help="scorer ranks visual tokens; selector decides, and merges; temporal acts on the cache; task asks."
        ),
    ] = "scorer",
    strategy: Annotated[str | None, typer.Option(help="Name of the strategy or task, where it is another.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder to write, new or empty; default: ./NAME.")] = None,
    as_json: options.AsJson = False,
) -> None:
    """Write a package with a strategy or task that can be installed, tested and compared at once, then be changed."""
    from tokentrim.cli.scaffold import NewPlugin

    plugin = NewPlugin(name, strategy or name, kind)
    plugin.check()
    folder = out or Path(name)
    written = plugin.write(folder)
    commands = [
        f"cd {shlex.quote(str(folder))}",
        "pip install -e '.[dev]'",
        "pytest",
        plugin.try_it(),
        "tokentrim compare configs/compare.yaml --out runs/first",
    ]
    if as_json:
        files = [str(path.relative_to(folder)) for path in written]
        emit({"folder": str(folder), "name": name, "strategy": plugin.strategy, "package": plugin.package, "kind": kind,
              "files": files, "commands": commands})  # fmt: skip
        return
    out_to = console()
    out_to.print(f"{folder}: {len(written)} files. What comes next:", style="bold")
    for command in commands:
        out_to.print(f"  {command}", soft_wrap=True)
