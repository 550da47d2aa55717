"""``tokentrim schema``: the JSON schema of configurations, for editors."""

from __future__ import annotations

from typing import Annotated

import typer

from tokentrim.cli.output import emit
from tokentrim.errors import ConfigError, complaint


def schema(
    compare: Annotated[bool, typer.Option("--compare", help="Of a file for 'tokentrim compare'.")] = False,
    schedule: Annotated[bool, typer.Option("--schedule", help="Of a file that 'tokentrim calibrate' writes.")] = False,
) -> None:
    """Print the JSON schema of a configuration file, with every installed strategy, for editors."""
    from tokentrim.cli.schemas import SCHEMAS

    if compare and schedule:
        raise ConfigError(complaint("a schema", "be either --compare or --schedule", hint="call the command twice"))
    emit(SCHEMAS["compare" if compare else "schedule" if schedule else "config"]())
