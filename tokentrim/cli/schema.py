"""``tokentrim schema``: the JSON schema of configurations, for editors."""

from __future__ import annotations

from tokentrim.cli.output import emit


def schema() -> None:
    """Print the JSON schema of a configuration file, with every installed strategy."""
    from tokentrim.schema import build_schema

    emit(build_schema())
