"""``tokentrim calibrate``: find a schedule on calibration questions, and write it into a file."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tokentrim.cli.output import AsJson, console, emit, quiet_libraries

if TYPE_CHECKING:
    from tokentrim.calibrate.options import CalibrationOptions
    from tokentrim.calibrate.runner import Calibration

calibrate = typer.Typer(no_args_is_help=True, add_completion=False, rich_markup_mode=None)

Out = Annotated[Path, typer.Option("--out", "-o", help="Schedule file to write; a stopped search for it is continued.")]
Model = Annotated[str, typer.Option("--model", "-m", help="A registered model or a model folder.")]
Tasks = Annotated[
    list[str] | None, typer.Option("--task", help="May be repeated; default: those of the default comparison.")
]
Samples = Annotated[int, typer.Option(help="Calibration questions of each task.")]
BatchSize = Annotated[int, typer.Option(help="Questions answered at once.")]
Device = Annotated[str, typer.Option(help="auto, cpu or cuda.")]
DType = Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")]
Query = Annotated[str, typer.Option(help="Whose attention ranks: text or last.")]
Quality = Annotated[str, typer.Option(help="score, or likelihood (of the right answers).")]
First = Annotated[int, typer.Option(help="First boundary at which tokens may go.")]


@calibrate.callback()
def _calibrate() -> None:
    """Find how much to keep per layer, on calibration questions alone; writes a schedule file."""


@calibrate.command()
def gsearch(
    out: Out,
    model: Model = "testbed",
    task: Tasks = None,
    samples: Samples = 32,
    tolerance: Annotated[
        float | None, typer.Option(help="Quality that may be lost in all; default 0.01, of a likelihood 0.02.")
    ] = None,
    resolution: Annotated[float, typer.Option(help="Distance of neighbouring keep rates.")] = 0.05,
    quality: Quality = "score",
    query: Query = "text",
    first: First = 1,
    batch_size: BatchSize = 25,
    device: Device = "auto",
    dtype: DType = "auto",
    as_json: AsJson = False,
) -> None:
    """The least keep rate of each layer with which the quality holds (G-Search)."""
    from tokentrim.calibrate.options import GSearch

    shared = _shared(model, task, samples, batch_size, device, dtype)
    own = {"tolerance": tolerance, "resolution": resolution, "quality": quality, "query": query, "first": first}
    _run(GSearch, {**shared, **own}, out, as_json)


@calibrate.command()
def psigmoid(
    out: Out,
    budget: Annotated[float, typer.Option(help="Share of the unpruned layer-mean tokens, met exactly.")] = 0.25,
    model: Model = "testbed",
    task: Tasks = None,
    samples: Samples = 32,
    trials: Annotated[int, typer.Option(help="Curves to try.")] = 40,
    seed: Annotated[int, typer.Option(help="Of the sampler.")] = 0,
    quality: Quality = "score",
    query: Query = "text",
    first: First = 1,
    batch_size: BatchSize = 25,
    device: Device = "auto",
    dtype: DType = "auto",
    as_json: AsJson = False,
) -> None:
    """The best sigmoid of keep rates over depth at a budget (P-Sigmoid); needs the extra 'calibrate'."""
    from tokentrim.calibrate.options import PSigmoid

    shared = _shared(model, task, samples, batch_size, device, dtype)
    own = {"budget": budget, "trials": trials, "seed": seed, "quality": quality, "query": query, "first": first}
    _run(PSigmoid, {**shared, **own}, out, as_json)


@calibrate.command()
def vtw(
    out: Out,
    model: Model = "testbed",
    task: Tasks = None,
    samples: Samples = 32,
    eta: Annotated[float, typer.Option(help="Mean divergence of the next token allowed, in nats.")] = 0.003,
    direction: Annotated[str, typer.Option(help="withdrawn-full, as the released code, or full-withdrawn.")] = (
        "withdrawn-full"
    ),
    first: Annotated[int, typer.Option(help="First boundary to try.")] = 5,
    batch_size: BatchSize = 25,
    device: Device = "auto",
    dtype: DType = "auto",
    as_json: AsJson = False,
) -> None:
    """The first boundary at which every visual token can be withdrawn (K of VTW)."""
    from tokentrim.calibrate.options import VTW

    shared = _shared(model, task, samples, batch_size, device, dtype)
    _run(VTW, {**shared, "eta": eta, "direction": direction, "first": first}, out, as_json)


@calibrate.command()
def heads(
    out: Annotated[Path, typer.Option("--out", "-o", help="Strategy file to write.")],
    keep: Annotated[float, typer.Option(help="Share of all heads that stay active.")] = 0.5,
    model: Model = "testbed",
    task: Tasks = None,
    samples: Samples = 32,
    share: Annotated[
        float, typer.Option(help="A head counts by what it reaches in this share of the questions.")
    ] = 0.4,
    always: Annotated[int, typer.Option(help="Lowest layers whose heads all stay active.")] = 2,
    batch_size: BatchSize = 25,
    device: Device = "auto",
    dtype: DType = "auto",
    as_json: AsJson = False,
) -> None:
    """The heads that do without visual keys (inactive heads of YOPO)."""
    from tokentrim.calibrate import heads as search
    from tokentrim.calibrate.options import options_from
    from tokentrim.runs.progress import progress_on

    quiet_libraries()
    shared = _shared(model, task, samples, batch_size, device, dtype)
    options = options_from(search.Heads, {**shared, "keep": keep, "share": share, "always": always})
    people = console(to_stderr=as_json)
    with progress_on(people, "tasks") as progress:
        done = search.run(options, out, command=["tokentrim", *sys.argv[1:]], progress=progress)
    if as_json:
        emit(
            {"file": str(done.path), "strategy": done.strategy, "heads_kept": done.kept, "ratios": done.ratios.tolist()}
        )
        return
    people.print(f"heads kept         {done.kept:.1%}")
    people.print(f"written            {done.path}", soft_wrap=True)
    people.print(f"run it with        --config {done.path}", soft_wrap=True)


def _shared(
    model: str, tasks: list[str] | None, samples: int, batch_size: int, device: str, dtype: str
) -> dict[str, Any]:
    """The fields that all searches have, as they were given."""
    return {
        "model": {"model": model, "device": device, "dtype": dtype},
        "tasks": tasks,
        "samples": samples,
        "batch_size": batch_size,
    }


def _run(kind: type[CalibrationOptions], values: dict[str, Any], out: Path, as_json: bool) -> None:
    """Calibrate, and print what was found."""
    from tokentrim.calibrate.options import options_from
    from tokentrim.calibrate.runner import run
    from tokentrim.runs.progress import progress_on

    quiet_libraries()
    options = options_from(kind, values)
    people = console(to_stderr=as_json)
    with progress_on(people, "measurements") as progress:
        done = run(options, out, command=["tokentrim", *sys.argv[1:]], progress=progress)
    if as_json:
        emit({"file": str(done.path), "strategy": done.strategy, **done.schedule.model_dump(mode="json")})
        return
    for key, value in _lines(done).items():
        people.print(f"{key:<18} {value}", soft_wrap=True)


def _lines(done: Calibration) -> dict[str, Any]:
    """What people want to know."""
    import yaml

    kept, result = done.schedule.rates or done.schedule.counts or {}, done.schedule.provenance["result"]
    return {
        "kept from boundary": ", ".join(f"{boundary}: {value:.4g}" for boundary, value in kept.items()),
        **{key.replace("_", " "): value for key, value in result.items()},
        "written": done.path,
        "run it with": yaml.safe_dump(done.strategy, default_flow_style=True, width=1000).strip(),
    }
