"""``tokentrim demo``: a local page to try strategies on pictures."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from tokentrim.cli import options
from tokentrim.cli.output import console, placement, quiet_libraries
from tokentrim.cli.run import check_fit, loading, refuse_evidence


def demo(
    model: Annotated[str, typer.Argument(help="A registered model, a folder, or an id of the hub.")] = "testbed",
    strategy: options.Strategy = "st3",
    host: Annotated[str, typer.Option(help="Address to listen at; 0.0.0.0 lets others in the network in.")] = (
        "127.0.0.1"
    ),
    port: Annotated[int, typer.Option(help="Port to listen at.", min=1, max=65535)] = 7860,
    device: options.Device = None,
    dtype: options.DType = None,
    attn_implementation: options.Attention = None,
    device_map: options.DeviceMap = None,
) -> None:
    """Open a local page: a picture, a question, and the pruned answer beside the unpruned one."""
    from tokentrim.config.specs import strategy_from

    place = loading(placement(device, dtype, attn_implementation, device_map))
    spec = strategy_from(strategy or "st3")
    refuse_evidence(spec.strategy)
    from tokentrim.loading import load_model
    from tokentrim.serve.demo import Asking, open_page, require_free, require_gradio

    require_gradio()
    require_free(host, port)
    quiet_libraries()
    check_fit([spec], model, 1)
    loaded = load_model(model, **place)
    asking = Asking(loaded, model, spec)
    page: Any = open_page(asking, spec.strategy.label(), host, port)
    console().print(f"http://{host}:{port} shows {model}; Ctrl-C ends it")
    page.block_thread()
