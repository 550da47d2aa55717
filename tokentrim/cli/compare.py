"""``tokentrim compare``: many strategies on the same questions."""

from __future__ import annotations

import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated

import typer

from tokentrim.cli.output import AsJson, FormatOption, RunFailed, console, emit, facts, formats_of, quiet_libraries


def compare(
    out: Annotated[Path, typer.Option("--out", "-o", help="Results folder; a stopped run in it is continued.")],
    config: Annotated[
        Path | None, typer.Argument(help="A YAML file; default: ST3, FastV and the controls on the shipped testbed.")
    ] = None,
    executor: Annotated[
        str | None,
        typer.Option("--executor", help="Where cells are run: local (default), ray, or a plugin's; changes no result."),
    ] = None,
    executor_option: Annotated[
        list[str] | None,
        typer.Option("--executor-option", help="KEY=VALUE, such as workers=2 or num_gpus=1; may be repeated."),
    ] = None,
    formats: FormatOption = None,
    as_json: AsJson = False,
) -> None:
    """Run many strategies at equal budgets on the same questions, and report what each costs and loses.

    Writes results.jsonl, summary.json and gallery.json, and reports: report.html, report.md, summary.csv, pareto.png,
    kept.png. Exit code 1 when a question failed.
    """
    from tokentrim.compare.runner import run
    from tokentrim.executors import parse_options
    from tokentrim.runs.progress import progress_on
    from tokentrim.runs.ranks import leave, speaks

    quiet_libraries()
    people = console(to_stderr=as_json)
    chosen = parse_options(executor, executor_option or ())
    with progress_on(people) if speaks() else nullcontext() as progress:
        summary = run(
            config, out, executor=chosen, command=["tokentrim", *sys.argv[1:]], progress=progress,
            formats=formats_of(formats),
        )  # fmt: skip
    leave()
    if not speaks():
        return
    if as_json:
        emit(summary.to_dict())
    else:
        people.print(summary.table())
        people.print()
        facts(people, summary.files, 8)
    if summary.failures:
        raise RunFailed(f"{summary.failures} of the questions or cells failed. The first: {summary.first_cause}")
