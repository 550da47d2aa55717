"""``tokentrim cite``: BibTeX of everything that a configuration stands on."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from tokentrim.cli import options
from tokentrim.cli.output import console, emit, write
from tokentrim.errors import ConfigError, complaint


def cite(
    what: Annotated[
        list[str] | None,
        typer.Argument(help="Strategies, YAML files for 'run' or 'compare', models, adapters: any number."),
    ] = None,
    tokentrim: Annotated[bool, typer.Option("--tokentrim", help="Cite tokentrim too.")] = False,
    as_json: options.AsJson = False,
) -> None:
    """Print the BibTeX of strategies, of their parts and guides, and of models; each work once."""
    if not what and not tokentrim:
        raise ConfigError(complaint("cite", "be told what", hint="such as: tokentrim cite st3, or a YAML file"))
    from tokentrim.cli.citations import bibliography, of_tokentrim

    found = bibliography(what or ())
    references = [*found.references, *([of_tokentrim()] if tokentrim else [])]
    if as_json:
        emit({"references": [asdict(reference) for reference in references], "without": list(found.without)})
    else:
        write("\n\n".join(reference.bibtex for reference in references) + "\n")
    if found.without:
        console(to_stderr=True).print(f"without a paper: {', '.join(found.without)}", soft_wrap=True)
