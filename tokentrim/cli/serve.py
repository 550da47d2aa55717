"""``tokentrim serve``: a model behind an OpenAI-compatible address, under a strategy."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from typing import Annotated, Any

import typer

from tokentrim.cli import options
from tokentrim.cli.output import console, placement, quiet_libraries
from tokentrim.cli.run import check_fit, check_structure, chosen, refuse_evidence
from tokentrim.errors import ConfigError, complaint


def serve(
    model: Annotated[
        str | None, typer.Argument(help="A registered model, a folder, or an id of the hub; default: testbed.")
    ] = None,
    strategy: options.Strategy = None,
    config: options.Config = None,
    budget: Annotated[
        float | None, typer.Option(help="Share in (0, 1] of the layer-mean visual tokens, solved for every prompt.")
    ] = None,
    structure: options.Structure = None,
    device: options.Device = None,
    dtype: options.DType = None,
    attn_implementation: options.Attention = None,
    device_map: options.DeviceMap = None,
    host: Annotated[str, typer.Option(help="Address to listen at; 0.0.0.0 lets other machines in.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen at; 0 takes a free one.", min=0, max=65535)] = 8000,
) -> None:
    """Serve a model under a strategy to OpenAI's clients, one request after the other, until Ctrl-C.

    Answers POST /v1/chat/completions, GET /v1/models and GET /health. Pictures come as data: URLs. What was kept and
    spent is in every answer's usage, under tokentrim. Needs the extra serve.
    """
    place = placement(device, dtype, attn_implementation, device_map)
    name, spec, place = chosen(strategy, config, model, place)
    check_structure(structure or "keep")
    spec = _with(spec, budget, structure)
    refuse_evidence(spec.strategy)
    from tokentrim.loading import load_model
    from tokentrim.serve.transformers.listening import listen
    from tokentrim.serve.transformers.upstream import require_server

    require_server()
    quiet_libraries()  # now that transformers is imported, which sets how much it says
    check_fit([spec], name, 1)
    people = console(to_stderr=True)
    with listen(host, port) as listening:
        loaded = load_model(name, **place)
        from tokentrim.serve.transformers.server import Server

        server = Server(name, loaded, spec, listening)
        people.print(f"{name} under {spec.strategy.label()} answers at {server.url}/v1, one request after the other")
        people.print("Ctrl-C ends it", style="dim")
        with suppress(KeyboardInterrupt):  # asyncio may take Ctrl-C for the end of its main task, and raise nothing
            server.run()
        people.print("stopped")


def _with(spec: Any, budget: float | None, structure: str | None) -> Any:
    """The strategy with what the options say of it.

    Raises:
        ConfigError: when it has a budget already, or the budget is none.
    """
    if budget is not None:
        if spec.budget is not None:
            raise ConfigError(
                complaint("the budget", "be given once", "--budget and one in the strategy", "take one of them out")
            )
        from tokentrim.config.specs import Budget, Where
        from tokentrim.config.validation import check

        spec = replace(spec, budget=check(Budget, {"layer_mean_ratio": budget}, "--budget", Where()))
    return spec if structure is None else replace(spec, structure=structure)
