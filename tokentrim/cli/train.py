"""``tokentrim train``: train a strategy's weights, and write them into a file."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from tokentrim.cli import options
from tokentrim.cli.output import console, emit, facts, listed, on_one_line, placement, quiet_libraries
from tokentrim.errors import ConfigError, complaint

_OWN = {"lr": "learning_rate"}  # an option of the command whose field has a longer name


def train(
    strategy: Annotated[
        str,
        typer.Argument(help="A trainable strategy: a name, inline YAML such as '{name: quecc, tokens: 1}', a file."),
    ],
    out: Annotated[
        Path, typer.Option("--out", "-o", help="Weights file to write; a stopped training of it is continued.")
    ],
    model: options.Model = "testbed",
    tasks: options.Tasks = None,
    steps: Annotated[int | None, typer.Option(help="Batches to train on; may differ when continuing.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Samples of a batch.")] = None,
    lr: Annotated[float | None, typer.Option(help="Highest learning rate.")] = None,
    seed: Annotated[int | None, typer.Option(help="Of initial weights and of every draw.")] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", help="KEY=VALUE: any option of the strategy's trainer. May be repeated."),
    ] = None,
    device: options.Device = None,
    dtype: options.DType = None,
    attn_implementation: options.Attention = None,
    device_map: options.DeviceMap = None,
    as_json: options.AsJson = False,
) -> None:
    """Train a strategy's weights on a frozen model; writes a safetensors file."""
    from tokentrim.progress import progress_on
    from tokentrim.train.runner import run

    quiet_libraries()
    given = {"steps": steps, "batch_size": batch_size, "lr": lr, "seed": seed}
    options = {
        "model": {"model": model, **placement(device, dtype, attn_implementation, device_map)},
        "tasks": listed(tasks),
        **{_OWN.get(name, name): value for name, value in given.items() if value is not None},
        **_settings(set_ or []),
    }
    people = console(to_stderr=as_json)
    with progress_on(people, "steps") as progress:
        done = run(strategy, out, options, command=["tokentrim", *sys.argv[1:]], progress=progress)
    if as_json:
        emit({"file": str(done.path), "strategy": done.strategy, "made_for": dict(done.header.made_for),
              "model": dict(done.header.model), "provenance": dict(done.header.provenance)})  # fmt: skip
        return
    means: dict[str, float] = done.header.provenance["result"]["running_means_at_end"]
    found = {f"{name} (mean)": f"{value:.4g}" for name, value in means.items()}
    facts(people, {**found, "written": done.path, "run it with": on_one_line(done.strategy)}, 14)


def _settings(texts: list[str]) -> dict[str, Any]:
    """``KEY=VALUE`` with values as YAML reads them.

    Raises:
        ConfigError: for a text without an equals sign, or a value that is no YAML.
    """
    from tokentrim.config.yaml_reader import parse_yaml

    found: dict[str, Any] = {}
    for text in texts:
        key, sign, value = text.partition("=")
        if not sign or not key:
            raise ConfigError(complaint("--set", "be KEY=VALUE", text, "write --set loss_ratio=1.05"))
        found[key] = parse_yaml(value, f"--set {key}").data
    return found
