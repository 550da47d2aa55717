"""``tokentrim calibrate``: find a schedule on calibration questions, and write it into a file."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tokentrim.cli import options
from tokentrim.cli.output import Command, console, emit, facts, listed, on_one_line, placement, quiet_libraries

if TYPE_CHECKING:
    from tokentrim.calibrate.options import CalibrationOptions, Options

calibrate = typer.Typer(no_args_is_help=True, add_completion=False, rich_markup_mode=None)

Out = Annotated[Path, typer.Option("--out", "-o", help="Schedule file to write; a stopped search for it is continued.")]
Samples = Annotated[int, typer.Option(help="Calibration questions of each task.")]
BatchSize = Annotated[int, typer.Option(help="Questions answered at once.")]
Query = Annotated[str, typer.Option(help="Whose attention ranks: text or last.")]
Quality = Annotated[str, typer.Option(help="score, or likelihood (of the right answers).")]
First = Annotated[int, typer.Option(help="First boundary at which tokens may go.")]


@calibrate.callback()
def _calibrate() -> None:
    """Find how much to keep per layer, on calibration questions alone; writes a schedule file."""


@calibrate.command(cls=Command)
def gsearch(
    ctx: typer.Context,
    out: Out,
    model: options.Model = "testbed",
    tasks: options.Tasks = None,
    samples: Samples = 32,
    tolerance: Annotated[
        float | None, typer.Option(help="Quality that may be lost in all; default 0.01, of a likelihood 0.02.")
    ] = None,
    resolution: Annotated[float, typer.Option(help="Distance of neighbouring keep rates.")] = 0.05,
    quality: Quality = "score",
    query: Query = "text",
    first: First = 1,
    batch_size: BatchSize = 25,
    device: options.Device = None,
    dtype: options.DType = None,
    attn_implementation: options.Attention = None,
    device_map: options.DeviceMap = None,
    as_json: options.AsJson = False,
) -> None:
    """The least keep rate of each layer with which the quality holds (G-Search)."""
    from tokentrim.calibrate.options import GSearch

    _run(GSearch, ctx.params)


@calibrate.command(cls=Command)
def psigmoid(
    ctx: typer.Context,
    out: Out,
    budget: Annotated[float, typer.Option(help="Share of the unpruned layer-mean tokens, met exactly.")] = 0.25,
    model: options.Model = "testbed",
    tasks: options.Tasks = None,
    samples: Samples = 32,
    trials: Annotated[int, typer.Option(help="Curves to try.")] = 40,
    seed: Annotated[int, typer.Option(help="Of the sampler.")] = 0,
    quality: Quality = "score",
    query: Query = "text",
    first: First = 1,
    batch_size: BatchSize = 25,
    device: options.Device = None,
    dtype: options.DType = None,
    attn_implementation: options.Attention = None,
    device_map: options.DeviceMap = None,
    as_json: options.AsJson = False,
) -> None:
    """The best sigmoid of keep rates over depth at a budget (P-Sigmoid); needs the extra 'calibrate'."""
    from tokentrim.calibrate.options import PSigmoid

    _run(PSigmoid, ctx.params)


@calibrate.command(cls=Command)
def vtw(
    ctx: typer.Context,
    out: Out,
    model: options.Model = "testbed",
    tasks: options.Tasks = None,
    samples: Samples = 32,
    eta: Annotated[float, typer.Option(help="Mean divergence of the next token allowed, in nats.")] = 0.003,
    direction: Annotated[str, typer.Option(help="withdrawn-full, as the released code, or full-withdrawn.")] = (
        "withdrawn-full"
    ),
    first: Annotated[int, typer.Option(help="First boundary to try.")] = 5,
    batch_size: BatchSize = 25,
    device: options.Device = None,
    dtype: options.DType = None,
    attn_implementation: options.Attention = None,
    device_map: options.DeviceMap = None,
    as_json: options.AsJson = False,
) -> None:
    """The first boundary at which every visual token can be withdrawn (K of VTW)."""
    from tokentrim.calibrate.options import VTW

    _run(VTW, ctx.params)


@calibrate.command(cls=Command)
def fitprune(
    ctx: typer.Context,
    out: Out,
    flops_cut: Annotated[float, typer.Option(help="Share of the visual tokens' FLOPs that has to go.")] = 0.6,
    model: options.Model = "testbed",
    tasks: options.Tasks = None,
    samples: Samples = 32,
    first: First = 1,
    batch_size: BatchSize = 25,
    device: options.Device = None,
    dtype: options.DType = None,
    attn_implementation: options.Attention = None,
    device_map: options.DeviceMap = None,
    as_json: options.AsJson = False,
) -> None:
    """How many visual tokens each layer deletes so that attention changes evenly (recipe of FitPrune)."""
    from tokentrim.calibrate.options import FitSearch

    _run(FitSearch, ctx.params)


@calibrate.command(cls=Command)
def heads(
    ctx: typer.Context,
    out: Annotated[Path, typer.Option("--out", "-o", help="Strategy file to write.")],
    keep: Annotated[float, typer.Option(help="Share of all heads that stay active.")] = 0.5,
    model: options.Model = "testbed",
    tasks: options.Tasks = None,
    samples: Samples = 32,
    share: Annotated[
        float, typer.Option(help="A head counts by what it reaches in this share of the questions.")
    ] = 0.4,
    always: Annotated[int, typer.Option(help="Lowest layers whose heads all stay active.")] = 2,
    batch_size: BatchSize = 25,
    device: options.Device = None,
    dtype: options.DType = None,
    attn_implementation: options.Attention = None,
    device_map: options.DeviceMap = None,
    as_json: options.AsJson = False,
) -> None:
    """The heads that do without visual keys (inactive heads of YOPO)."""
    from tokentrim.calibrate import heads as search
    from tokentrim.progress import progress_on

    options = _options(search.HeadSearch, ctx.params)
    people = console(to_stderr=as_json)
    with progress_on(people, "batches") as progress:
        done = search.run(options, out, command=["tokentrim", *sys.argv[1:]], progress=progress)
    if as_json:
        emit(
            {"file": str(done.path), "strategy": done.strategy, "heads_kept": done.kept, "ratios": done.ratios.tolist()}
        )
        return
    use = f"--config {done.path}"
    facts(people, {"heads kept": f"{done.kept:.1%}", "written": done.path, "run it with": use}, 18)


def _options(kind: type[Options], given: dict[str, Any]) -> Options:
    """A search's options from a command's parameters, which are named as its fields are but for what is no field."""
    from tokentrim.calibrate.options import options_from

    quiet_libraries()
    place = {name: given[name] for name in ("device", "dtype", "attn_implementation", "device_map")}
    model = {"model": given["model"], **placement(**place)}
    own = {name: value for name, value in given.items() if name not in ("model", *place, "tasks", "out", "as_json")}
    return options_from(kind, {**own, "model": model, "tasks": listed(given["tasks"])})


def _run(kind: type[CalibrationOptions], given: dict[str, Any]) -> None:
    """Calibrate, and print what was found."""
    from tokentrim.calibrate.runner import run
    from tokentrim.progress import progress_on

    options = _options(kind, given)
    people = console(to_stderr=given["as_json"])
    with progress_on(people, "measurements") as progress:
        done = run(options, given["out"], command=["tokentrim", *sys.argv[1:]], progress=progress)
    if given["as_json"]:
        emit({"file": str(done.path), "strategy": done.strategy, **done.schedule.model_dump(mode="json")})
        return
    kept, result = done.schedule.rates or done.schedule.counts or {}, done.schedule.provenance["result"]
    found = {
        "kept from boundary": ", ".join(f"{boundary}: {value:.4g}" for boundary, value in kept.items()),
        **{key.replace("_", " "): value for key, value in result.items()},
    }
    facts(people, {**found, "written": done.path, "run it with": on_one_line(done.strategy)}, 18)
