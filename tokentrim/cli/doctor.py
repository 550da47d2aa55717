"""``tokentrim doctor``: what is installed, what loads, and whether a model is served."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tokentrim.cli import options
from tokentrim.cli.output import RunFailed, console, emit, plain_table, quiet_libraries
from tokentrim.errors import complaint
from tokentrim.hookspecs import PROJECT
from tokentrim.plugins.loader import DISTRIBUTION, checked_infos, registry

if TYPE_CHECKING:
    from rich.console import Console

_PACKAGES = (
    DISTRIBUTION, "torch", "transformers", "pydantic", "pluggy", "safetensors", "numpy", "pillow", "pyyaml", "typer",
    "rich", "torchvision", "scipy", "matplotlib", "accelerate",
)  # fmt: skip


def doctor(
    model: Annotated[
        str | None, typer.Option(help="Also check this registered model, folder or id of the hub.")
    ] = None,
    as_json: options.AsJson = False,
) -> None:
    """Report versions, attention backends, plugins and adapters; with --model, check that pruning works on it.

    The checks run on a small random copy of the model's configuration, so they need no weights; of a model of the hub
    only config and processor are fetched. Exit code 1 when one fails for which the model is refused, its processor does
    not load, or a plugin cannot be used; 2 where there is no such model.
    """
    from tokentrim.loading import require_fitting_torchvision

    quiet_libraries()
    require_fitting_torchvision()
    infos = checked_infos()
    findings: dict[str, Any] = {
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in _PACKAGES},
        "torch": _torch(),
        "plugins": [
            {"name": info.name, "distribution": info.distribution, "status": info.status, "error": info.error}
            for info in infos
        ],
        "adapters": {entry.name: list(entry.tags.get("model_types", ())) for entry in registry("adapter")},
        "problems": [],
    }
    problems: list[str] = findings["problems"]
    problems += _clash()
    problems += [info.error or info.name for info in infos if info.status in ("broken", "failed", "missing")]
    if model is not None:
        from tokentrim.cli.checkup import PROCESSOR, WEIGHTS, check_model
        from tokentrim.progress import progress_on

        with progress_on(console(to_stderr=True), "checks") as progress:
            findings["model"] = check_model(model, progress)
        refused = not findings["model"]["served"]
        problems += [
            f"{check['name']}: {check['result']}"
            for check in findings["model"]["checks"]
            if (refused and not check["ok"] and not check["takes"])
            or (check["ok"] is False and check["name"] in (PROCESSOR, WEIGHTS))
        ]
    if as_json:
        emit(findings)
    else:
        _print(console(), findings)
    if problems:
        raise RunFailed(f"{len(problems)} found. The first: {problems[0]}")


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _clash() -> list[str]:
    """What is said where another distribution is called tokentrim: both are imported by that name."""
    other = _version(PROJECT)
    if other is None or _version(DISTRIBUTION) is None:
        return []
    hint = f"run pip uninstall {PROJECT}, then pip install --force-reinstall --no-deps {DISTRIBUTION}"
    got = f"{PROJECT} {other} beside {DISTRIBUTION}"
    return [complaint(f"what is imported as {PROJECT}", "come from one distribution", got, hint)]


def _torch() -> dict[str, Any]:
    """Devices and attention backends."""
    import torch
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
    from transformers.utils.import_utils import is_flash_attn_2_available

    backends = [str(name) for name in ALL_ATTENTION_FUNCTIONS.valid_keys()]
    ready = [name for name in backends if "flash" not in name or is_flash_attn_2_available()]
    return {
        "threads": torch.get_num_threads(),
        "cuda": torch.cuda.is_available(),
        "gpus": [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())],
        "attention": ["eager", *sorted(name for name in ready if "|" not in name and name != "eager")],
    }


def _print(out: Console, findings: dict[str, Any]) -> None:
    """The findings for people."""
    table = plain_table(show_header=False)
    table.add_row("python", findings["python"])
    for name, number in findings["packages"].items():
        table.add_row(name, number or "not installed")
    torch = findings["torch"]
    table.add_row("threads", str(torch["threads"]))
    table.add_row("GPUs", ", ".join(torch["gpus"]) or "none")
    table.add_row("attention", ", ".join(torch["attention"]))
    for name, types in findings["adapters"].items():
        served = f"model_type {', '.join(types)}" if types else "other models, if they pass the self-test"
        table.add_row(f"adapter {name}", f"serves {served}")
    for plugin in findings["plugins"]:
        table.add_row(f"plugin {plugin['name']}", f"{plugin['status']} ({plugin['distribution']})")
    out.print(table)
    if "model" in findings:
        out.print()
        out.print(f"model {findings['model']['model']}", style="bold")
        checks = plain_table(show_header=False)
        for check in findings["model"]["checks"]:
            sign = {True: "ok", False: "FAILED", None: "not checked"}[check["ok"]]
            sign = f"without {' '.join(check['takes'])}" if check["takes"] else sign
            checks.add_row(check["name"], sign, check["result"])
        out.print(checks)
    for problem in findings["problems"]:
        out.print(f"problem: {problem}", style="red", soft_wrap=True)
    if not findings["problems"]:
        out.print("no problem found", style="green")
