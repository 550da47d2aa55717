"""``tokentrim validate``: is this configuration right?"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tokentrim.cli import options
from tokentrim.cli.output import console, emit
from tokentrim.errors import ConfigError, StrategyError, complaint

if TYPE_CHECKING:
    from tokentrim.config.specs import StrategySpec


def validate(
    file: Annotated[Path, typer.Argument(help="A YAML file for 'tokentrim run', 'compare' or 'bench --suite'.")],
    as_json: options.AsJson = False,
) -> None:
    """Check that a configuration file could be run, and print what it means, defaults included."""
    kind, resolved = read(file)
    if as_json:
        emit({"file": str(file), "kind": kind, "valid": True, "config": resolved})
        return
    import yaml

    out = console()
    out.print(f"{file}: a valid {kind}, which reads in full:")
    out.print(yaml.safe_dump(resolved, sort_keys=False, allow_unicode=True).rstrip(), soft_wrap=True)


def read(file: Path) -> tuple[str, dict[str, Any]]:
    """(kind, resolved configuration) of a file that could be run.

    Raises:
        TokentrimError: when it is malformed, or what it names is not there or does not fit; names file, line and path
            where the file says what is wrong.
    """
    from tokentrim.compare.config import is_comparison
    from tokentrim.config.schedule_file import read_schedule
    from tokentrim.config.specs import load_config, load_yaml

    data = load_yaml(file).data
    if is_comparison(data):
        from tokentrim.compare.runner import planned

        found = planned(file)
        where = {} if found.settings.executor is None else {"executor": found.executor.spec()}
        return "comparison", found.settings.to_dict() | where
    if isinstance(data, Mapping) and "settings" in data:
        from tokentrim.bench.suite import load_suite

        return "suite of benches", load_suite(file).model_dump(mode="json")
    if isinstance(data, Mapping) and "made_for" in data:
        return "schedule", read_schedule(file).model_dump(mode="json", exclude_none=True)
    config = load_config(file)
    _require_fit(config.chosen, config.model)
    return "configuration", config.model_dump(mode="json")


def _require_fit(spec: StrategySpec, model: str | None) -> None:
    """Look at what running the strategy would look at first: its files, and its numbers beside the model's.

    Where no model is named, some model that is known by name must do: which it will be is said on the command line.
    What was made for one model, and lies in a file, is left to that.

    Raises:
        TokentrimError: when something is not there, or does not fit.
    """
    from tokentrim.cli.run import check_fit
    from tokentrim.counting.forecast import plan
    from tokentrim.loading import PRESETS, resolve_folder, shape_of

    if model is not None:
        resolve_folder(model)
        check_fit([spec], model, 1)
        return
    parts = (spec.strategy, *spec.strategy.parts().deciders)
    files = {part.name: value for part in parts for _, value in part if isinstance(value, Path)}
    for name, path in files.items():
        if not path.is_file():
            raise ConfigError(complaint(f"the file of strategy {name!r}", "be there", str(path), "check the path"))
    refusals: list[StrategyError] = []
    for shape in () if files else (shape_of("testbed"), *PRESETS.values()):
        try:
            plan(spec.strategy, shape, shape.usual_visual)
            return
        except StrategyError as refusal:
            refusals.append(refusal)
    if refusals:
        raise refusals[-1]
