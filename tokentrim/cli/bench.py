"""``tokentrim bench``: seconds and bytes, on random weights of a real geometry."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tokentrim.cli import options
from tokentrim.cli.output import console, emit, listed, placement, quiet_libraries, write
from tokentrim.errors import ConfigError, complaint

if TYPE_CHECKING:
    from tokentrim.bench import BenchOptions, BenchResult


GeometryOption = Annotated[
    str,
    typer.Option(
        "--geometry", "--model", "-m",
        help="Model geometry (an unknown one lists those that there are), or a model: its name, folder or id on "
        "the hub; its weights are made up, too.",
    ),
]  # fmt: skip


def bench(
    geometry: GeometryOption = "scaled",
    strategies: Annotated[list[str] | None, options.strategies("st3,fastv,random")] = None,
    layer_mean_ratio: Annotated[float, typer.Option(help="Budget of every strategy; 0 = as configured.")] = 0.25,
    device: options.Device = None,
    dtype: options.DType = None,
    attn_implementation: options.Attention = None,
    device_map: options.DeviceMap = None,
    batch: Annotated[int, typer.Option(help="Rows per prompt.")] = 1,
    images: Annotated[int, typer.Option(help="Images per row.")] = 1,
    prompt_tokens: Annotated[int, typer.Option(help="Text tokens of the prompt.")] = 35,
    new_tokens: Annotated[int, typer.Option(help="Tokens that a long run generates.")] = 32,
    repeats: Annotated[int, typer.Option(help="Timed runs of each strategy.")] = 5,
    budget_minutes: Annotated[
        float | None, typer.Option(help="What all of it may take: fewer repeats where they would take longer.")
    ] = None,
    threads: Annotated[int, typer.Option(help="CPU threads; 0 = torch's choice.")] = 0,
    memory: Annotated[bool, typer.Option(help="Measure peak memory.")] = True,
    compile_steps: Annotated[
        bool, typer.Option("--compile/--no-compile", help="Decode compiled under every strategy.")
    ] = False,
    limits: Annotated[
        bool, typer.Option(help="Measure matrix rate and memory bandwidth, and the distance to them.")
    ] = False,
    seed: Annotated[int, typer.Option(help="Of the weights and the prompt.")] = 0,
    read: Annotated[
        Path | None, typer.Option(help="Measure nothing: show a result that --json wrote into this file.")
    ] = None,
    throughput: Annotated[
        float, typer.Option(help="Instead: tokens per second at the largest batch in so many GiB beyond the weights.")
    ] = 0.0,
    profile: Annotated[
        bool, typer.Option("--profile", help="Instead: where the time of an answer goes, by phase and operation.")
    ] = False,
    suite: Annotated[Path | None, typer.Option(help="Run every bench of this YAML file instead; with --out.")] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder of a suite's results; what it holds is not run again.")
    ] = None,
    as_markdown: Annotated[bool, typer.Option("--markdown", help="Print Markdown on stdout.")] = False,
    as_json: options.AsJson = False,
) -> None:
    """Time strategies against the untouched model: prefill, decoding, selection and memory."""
    if as_json and as_markdown:
        raise ConfigError(complaint("the output of a bench", "be one of --json and --markdown", "both", "drop one"))
    if (suite is None) != (out is None):
        raise ConfigError(
            complaint("--suite and --out of a bench", "be given together", hint="bench --suite FILE --out DIR")
        )
    if suite is not None and out is not None:
        _suite(suite, out)
        return
    from tokentrim.bench import BenchOptions, markdown

    quiet_libraries()
    words: dict[str, Any] = placement(device, dtype, attn_implementation, device_map)
    chosen = tuple(listed(strategies)) if strategies else BenchOptions.strategies
    wanted = BenchOptions(
        geometry=geometry, strategies=chosen, layer_mean_ratio=layer_mean_ratio or None,
        batch=batch, images=images, prompt_tokens=prompt_tokens, new_tokens=new_tokens,
        repeats=repeats, budget_minutes=budget_minutes, threads=threads or None, memory=memory, compile=compile_steps,
        limits=limits, seed=seed, **words,
    )  # fmt: skip
    if throughput:
        _throughput(wanted, round(throughput * 2**30), as_json)
        return
    if profile:
        _profile(wanted, as_json)
        return
    result = _result(wanted, read)
    if as_json:
        emit(result.to_dict())
    elif as_markdown:
        write(markdown(result))
    else:
        console().print(result.table())


def _result(options: BenchOptions, read: Path | None) -> BenchResult:
    """What is measured, or was."""
    from tokentrim.bench import BenchResult, run
    from tokentrim.progress import progress_on

    if read is not None:
        return BenchResult.read(read)
    with progress_on(console(to_stderr=True), "runs") as progress:
        return run(options, progress)


def _suite(file: Path, out: Path) -> None:
    """Run a suite; exit code 1 where a bench of it failed."""
    from tokentrim.bench.suite import PAGE, run_suite
    from tokentrim.progress import progress_on

    quiet_libraries()
    with progress_on(console(to_stderr=True), "runs") as progress:
        entries = run_suite(file, out, progress=progress)
    failed = sum(entry.result is None for entry in entries)
    console().print(f"{len(entries) - failed} of {len(entries)} benches are in {out / PAGE}")
    if failed:
        raise typer.Exit(1)


def _profile(options: Any, as_json: bool) -> None:
    """Print where each strategy's answer spends its time."""
    from tokentrim.bench.profile import profile_markdown, run_profile
    from tokentrim.bench.subject import environment_of, threads
    from tokentrim.progress import progress_on

    with progress_on(console(to_stderr=True), "strategies") as progress:
        profiles = run_profile(options, progress)
    with threads(options.threads):
        where = environment_of(options)
    if as_json:
        phases = [one.to_dict() for one in profiles]
        emit({"command": f"{options.command()} --profile", "environment": where, "phases": phases})
    else:
        write(profile_markdown(options, profiles, where))


def _throughput(options: Any, budget: int, as_json: bool) -> None:
    """Print every strategy's throughput at its own largest batch."""
    from tokentrim.bench.throughput import run_throughput, throughput_markdown
    from tokentrim.progress import progress_on

    if budget <= 0:
        raise ConfigError(complaint("--throughput of a bench", "be GiB above 0", budget / 2**30))
    with progress_on(console(to_stderr=True), "runs") as progress:
        result = run_throughput(options, budget, progress)
    if as_json:
        emit(result.to_dict())
    else:
        write(throughput_markdown(options, result))
