"""``tokentrim validate``: is this configuration right?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from tokentrim.cli.output import AsJson, console, emit


def validate(
    file: Annotated[Path, typer.Argument(help="A YAML file for 'tokentrim run' or 'tokentrim compare'.")],
    as_json: AsJson = False,
) -> None:
    """Check a configuration file and print what it means, defaults included."""
    kind, resolved = read(file)
    if as_json:
        emit({"file": str(file), "kind": kind, "valid": True, "config": resolved})
        return
    import yaml

    out = console()
    out.print(f"{file}: a valid {kind}, which reads in full:")
    out.print(yaml.safe_dump(resolved, sort_keys=False, allow_unicode=True).rstrip(), soft_wrap=True)


def read(file: Path) -> tuple[str, dict[str, Any]]:
    """(kind, resolved configuration) of a file.

    Raises:
        ConfigError: when it is malformed; names file, line and path.
        UnknownNameError: when a name in it is not registered.
    """
    from tokentrim.compare.config import is_comparison
    from tokentrim.config.specs import load_config, load_yaml

    if is_comparison(load_yaml(file).data):
        from tokentrim.compare.config import load_compare
        from tokentrim.runs.cells import first_boundary, locate

        config = load_compare(file)
        for spec in config.models:
            target = locate(spec)
            for method in config.strategies:
                first_boundary(method.chosen.strategy, target.shape)
        where = {} if config.executor is None else {"executor": config.executor.spec()}
        return "comparison", config.to_dict() | where
    return "configuration", load_config(file).model_dump(mode="json")
