"""``tokentrim compare``: many strategies on the same questions."""

from __future__ import annotations

import shlex
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, Any

import typer

from tokentrim.cli import options
from tokentrim.cli.output import RunFailed, console, emit, facts, formats_of, listed, placement, quiet_libraries
from tokentrim.errors import ConfigError, complaint

_STRATEGIES = ("st3", "fastv")
_PLACEMENT = ("device", "dtype", "attn_implementation", "device_map")


def compare(
    out: Annotated[Path, typer.Option("--out", "-o", help="Results folder; a stopped run in it is continued.")],
    config: Annotated[
        Path | None,
        typer.Argument(help="A YAML file; default, without the options that say what it says: the shipped comparison."),
    ] = None,
    model: Annotated[
        list[str] | None,
        typer.Option("--model", "-m", help="Models, folders, ids of the hub; default: testbed."),
    ] = None,
    strategies: Annotated[list[str] | None, options.strategies("st3,fastv")] = None,
    budgets: Annotated[
        str | None, typer.Option("--budgets", help="Shares in (0, 1], such as 0.5,0.25; default: 0.5,0.3,0.2.")
    ] = None,
    tasks: options.Tasks = None,
    samples: Annotated[
        int | None, typer.Option("--samples", help="Questions of each task, at most; default: 100.")
    ] = None,
    device: options.Device = None,
    dtype: options.DType = None,
    attn_implementation: options.Attention = None,
    device_map: options.DeviceMap = None,
    timing: Annotated[
        bool | None, typer.Option("--timing/--no-timing", help="Also time every method; takes minutes; default: do.")
    ] = None,
    save_config: Annotated[
        Path | None,
        typer.Option("--save-config", help="Write what these options mean into this YAML file."),
    ] = None,
    executor: Annotated[
        str | None,
        typer.Option("--executor", help="Where cells are run: local (default), ray, or a plugin's; changes no result."),
    ] = None,
    executor_option: Annotated[
        list[str] | None,
        typer.Option("--executor-option", help="KEY=VALUE, such as workers=2 or num_gpus=1; may be repeated."),
    ] = None,
    formats: options.Format = None,
    as_json: options.AsJson = False,
) -> None:
    """Run many strategies at equal budgets on the same questions, and report what each costs and loses.

    What is compared is in a YAML file, or said by --model, --strategies, --budgets, --tasks and --samples. Writes
    results.jsonl, summary.json and gallery.json, and reports: report.html, report.md, summary.csv, pareto.png,
    kept.png. Exit code 1 when a question failed.
    """
    from tokentrim.compare.runner import planned, run
    from tokentrim.executors import parse_options
    from tokentrim.progress import progress_on
    from tokentrim.runs.ranks import leave, speaks

    given = {"model": model, "strategies": strategies, "budgets": budgets, "tasks": tasks, "samples": samples,
             "timing": timing, **placement(device, dtype, attn_implementation, device_map)}  # fmt: skip
    source = _source(config, {name: value for name, value in given.items() if value is not None}, save_config)
    quiet_libraries()
    people = console(to_stderr=as_json)
    chosen = parse_options(executor, executor_option or ())
    command = ["tokentrim", *sys.argv[1:]]
    if save_config is not None and isinstance(source, dict):
        planned(source, chosen)  # so that what cannot run is not written
        _save(source, save_config, f"tokentrim compare {shlex.quote(str(save_config))} --out {shlex.quote(str(out))}")
    with progress_on(people) if speaks() else nullcontext() as progress:
        summary = run(
            source, out, executor=chosen, command=command, progress=progress, formats=formats_of(formats)
        )  # fmt: skip
    leave()
    if not speaks():
        return
    if as_json:
        emit(summary.to_dict())
    else:
        people.print(summary.table())
        people.print()
        facts(people, summary.files, 8)
    if summary.failures:
        raise RunFailed(f"{summary.failures} of the questions or cells failed. The first: {summary.first_cause}")


def _source(config: Path | None, given: dict[str, Any], save: Path | None) -> Path | dict[str, Any] | None:
    """What is compared: the file, what the options say, or None for what comes with tokentrim.

    Raises:
        ConfigError: when both a file and options say it.
    """
    if config is not None:
        said = [f"--{name.replace('_', '-')}" for name in (*given, *(["save-config"] if save else []))]
        if said:
            raise ConfigError(
                complaint("a comparison", "be said by a file or by options", f"{config} and {', '.join(said)}",
                          "change the file, or leave it out")
            )  # fmt: skip
        return config
    return _asked(given) if given or save else None


def _asked(given: dict[str, Any]) -> dict[str, Any]:
    """What the options say, as a comparison's file would."""
    from tokentrim.runs.specs import usual_tasks

    where = {key: given[key] for key in _PLACEMENT if key in given}
    models = [{"model": name, **where} if where else name for name in listed(given.get("model")) or ["testbed"]]
    data: dict[str, Any] = {
        "models": models,
        "tasks": _parts(given, "tasks") or usual_tasks(),
        "strategies": _parts(given, "strategies") or list(_STRATEGIES),
    }
    if "budgets" in given:
        data["budgets"] = [_share(text) for text in listed([given["budgets"]])]
    return data | {key: given[key] for key in ("samples", "timing") if key in given}


def _parts(given: dict[str, Any], option: str) -> list[Any]:
    """The values of an option, inline YAML among them as the mappings that it says."""
    from tokentrim.config.yaml_reader import is_inline, parse_yaml

    names = listed(given.get(option))
    return [parse_yaml(text, f"--{option}").data if is_inline(text) else text for text in names]


def _share(text: str) -> float:
    try:
        return float(text)
    except ValueError as cause:
        raise ConfigError(complaint("--budgets", "be numbers with commas between", text, "such as 0.5,0.25")) from cause


def _save(data: dict[str, Any], path: Path, command: str) -> None:
    """Write a comparison's file.

    Raises:
        ConfigError: when another file is there.
        ResultsError: when it cannot be written.
    """
    import yaml

    from tokentrim.runs.files import write_text

    text = f"# {command}\n{yaml.safe_dump(data, sort_keys=False, allow_unicode=True, default_flow_style=None)}"
    if path.exists() and (not path.is_file() or path.read_text(encoding="utf-8", errors="replace") != text):
        raise ConfigError(
            complaint("--save-config", "name a new file", str(path), "nothing is overwritten: choose another name")
        )
    write_text(path, text)
