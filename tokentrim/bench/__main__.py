"""``python -m tokentrim.bench``: the bench from the command line."""

from __future__ import annotations

import json
import sys
from typing import Annotated

import typer
from rich.console import Console
from typer import Option

from tokentrim.bench import GEOMETRIES, BenchOptions, run, split_strategies
from tokentrim.errors import TokentrimError

_DEFAULTS = BenchOptions()


def main(
    geometry: Annotated[str, Option(help=f"one of {', '.join(GEOMETRIES)}")] = _DEFAULTS.geometry,
    strategies: Annotated[str, Option(help="names or inline YAML, with commas between")] = "st3,fastv,random",
    layer_mean_ratio: Annotated[float, Option(help="budget; 0 = as configured")] = 0.25,
    device: Annotated[str, Option(help="auto, cpu or cuda")] = _DEFAULTS.device,
    dtype: Annotated[str, Option(help="auto, float32, bfloat16 or float16")] = _DEFAULTS.dtype,
    batch: Annotated[int, Option(help="rows per prompt")] = _DEFAULTS.batch,
    prompt_tokens: Annotated[int, Option(help="text tokens of the prompt")] = _DEFAULTS.prompt_tokens,
    new_tokens: Annotated[int, Option(help="tokens of a long run")] = _DEFAULTS.new_tokens,
    repeats: Annotated[int, Option(help="timed runs of each strategy")] = _DEFAULTS.repeats,
    threads: Annotated[int, Option(help="CPU threads; 0 = torch's choice")] = 0,
    memory: Annotated[bool, Option(help="measure peak memory")] = _DEFAULTS.memory,
    seed: Annotated[int, Option(help="of weights and prompt")] = _DEFAULTS.seed,
    as_json: Annotated[bool, Option("--json", help="print JSON instead of a table")] = False,
) -> None:
    """Time strategies against the untouched model, on random weights."""
    try:
        options = BenchOptions(
            geometry=geometry,
            strategies=split_strategies(strategies),
            layer_mean_ratio=layer_mean_ratio or None,
            device=device,  # pyright: ignore[reportArgumentType]  # BenchOptions checks the word
            dtype=dtype,  # pyright: ignore[reportArgumentType]  # the same
            batch=batch,
            prompt_tokens=prompt_tokens,
            new_tokens=new_tokens,
            repeats=repeats,
            threads=threads or None,
            memory=memory,
            seed=seed,
        )
        result = run(options)
    except TokentrimError as error:
        print(error, file=sys.stderr)
        raise SystemExit(error.exit_code) from None
    if as_json:
        print(json.dumps(result.to_dict(), indent=2))
    else:
        Console().print(result.table())


if __name__ == "__main__":
    typer.run(main)
