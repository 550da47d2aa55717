"""Every command on a small copy of a family, as a user would type it; see :mod:`tests.small_families`."""

from __future__ import annotations

import json
import tempfile
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from PIL import Image
from typer.main import get_command
from typer.testing import CliRunner

from tests import small_families
from tokentrim.cli import app
from tokentrim.selftest import SelfTest, learning

_command_of = cache(get_command)  # made anew for every call otherwise
COMMANDS = ("run", "plan", "compare", "explain", "bench")
REMARKED = ("run", "plan")
"""Those that the remarks of a row come from; the others take most of a walk."""
_SIZE = (48, 96)  # height and width of the picture
_COMPARISON = """\
models: [{"model": "{model}", device: cpu}]
tasks: [{tasks}]
strategies: [fastv]
budgets: [0.8]
controls: []
text_only: false
timing: false
samples: 1
max_new_tokens: 2
"""


@dataclass
class Walked:
    """What became of a family's commands.

    Attributes:
        failures: by command, what was said where it did not work.
        in_place: whether kept tokens are drawn in their places.
        counted: whether the costs of the vision tower are known.
        wrong: what a command said that another, or the drawing, contradicts.
    """

    failures: dict[str, str] = field(default_factory=dict[str, str])
    in_place: bool = False
    counted: bool = False
    wrong: list[str] = field(default_factory=list[str])


def walk(model_type: str, proof: SelfTest, commands: Sequence[str] = COMMANDS) -> Walked:
    """Commands on the small copy of a family, whose self-test has said ``proof``; ``run`` and ``plan`` always."""
    found = Walked()
    processor = small_families.stand_in(model_type)

    def load_processor(folder: Path) -> small_families.StandIn:
        return processor

    with (
        tempfile.TemporaryDirectory() as name,
        patch("tokentrim.loading.models.load_processor", load_processor),
        patch.object(learning, "load_processor", load_processor),
        patch("typer.testing._get_command", _command_of),
        patch("tokentrim.selftest.running.self_test", lambda *given, **asked: proof),  # which takes a second or two
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        _walk(model_type, Path(name), found, commands)
    return found


def _walk(model_type: str, folder: Path, found: Walked, commands: Sequence[str]) -> None:
    model, picture, overlay = folder / model_type, folder / "picture.png", folder / "kept.png"
    small_families.save(model_type, model)
    pixels = torch.randint(256, (*_SIZE, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    Image.fromarray(pixels.numpy()).save(picture)
    tasks, config = folder / "mine.jsonl", folder / "compare.yaml"
    tasks.write_text(json.dumps({"image": str(picture), "question": "what ?", "answer": "a"}), "utf-8")
    config.write_text(_COMPARISON.replace("{model}", str(model)).replace("{tasks}", str(tasks)), "utf-8")
    asked = ("--model", model, "-s", "fastv", "--device", "cpu")
    shown = ("--image", picture, "--prompt", "what ?", "--no-baseline", "--max-new-tokens", 2)

    def call(*arguments: object) -> Any:
        result = CliRunner().invoke(app, [str(argument) for argument in arguments])
        if result.exit_code:
            said = result.stderr or repr(result.exception)
            found.failures[str(arguments[0])] = " ".join(said.split())
        return result

    ran = call("run", *asked, *shown, "--overlay", overlay, "--json")
    planned = call("plan", *asked[:4], "--image-size", f"{_SIZE[0]}x{_SIZE[1]}", "--json")
    for command, *words in (
        ("compare", config, "--out", folder / "compared", "--format", "csv"),
        ("explain", *asked, *shown, "--out", folder / "explained"),
        ("bench", *asked, "--repeats", 1, "--new-tokens", 2, "--no-memory", "--layer-mean-ratio", 0.8, "--json"),
    ):
        if command in commands:
            call(command, *words)
    made = {
        "run": ("kept.png is not drawn", overlay),
        "compare": ("nothing is compared", folder / "compared/summary.csv"),
        "explain": ("side-by-side.png is not drawn", folder / "explained/side-by-side.png"),
    }
    found.wrong += [what for command, (what, file) in made.items() if command in commands and not file.is_file()]
    if not (ran.exit_code or planned.exit_code):
        report, plan = json.loads(ran.stdout)["report"], json.loads(planned.stdout)
        if report["n_visual"] != plan["n_visual"]:
            found.wrong.append(f"run sees {report['n_visual']} visual tokens, plan {plan['n_visual']}")
        found.in_place = "not in their places" not in ran.stderr
        found.counted = plan["prefill_flops_whole"] is not None
