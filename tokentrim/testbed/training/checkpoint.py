"""Training checkpoints: one file per stage, replaced atomically, so that a killed run can always go on."""

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tokentrim.errors import DataError, TokentrimError, complaint, reason_of


@dataclass
class TrainingProgress:
    """Where a stage stands. Random numbers need no state: each step seeds its own from stage and step."""

    step: int = 0
    most: int = 0  # objects, the curriculum's present bound
    raised: int = 0  # step at which the curriculum last moved
    meters: dict[str, float] = field(default_factory=dict[str, float])

    def update(self, name: str, value: float) -> None:
        """Running mean of a loss."""
        self.meters[name] = 0.95 * self.meters[name] + 0.05 * value if name in self.meters else value


@dataclass(frozen=True)
class Checkpoint:
    """All that a stage needs to go on, and all that the next stage starts from."""

    model: dict[str, Tensor]
    heads: dict[str, Tensor]
    optimizer: dict[str, Any]
    progress: TrainingProgress

    def save(self, path: Path) -> None:
        """Write the file; a reader sees the old or the new one, never a part."""
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(".part")
        torch.save({**self.__dict__, "progress": self.progress.__dict__}, part)
        os.replace(part, path)

    @classmethod
    def load(cls, path: Path) -> "Checkpoint":
        """Read a file without running any code of it.

        Raises:
            DataError: when it is missing, or no checkpoint.
        """
        try:
            data = torch.load(path, weights_only=True)
            return cls(data["model"], data["heads"], data["optimizer"], TrainingProgress(**data["progress"]))
        except Exception as cause:  # torch raises whatever the broken file led to
            must = "be that of a stage of training, FOLDER/STAGE.pt"
            raise DataError(complaint(f"the checkpoint {path}", must, hint=reason_of(cause))) from cause


def file_before(run: Path, stage: str, before: str) -> Path:
    """The checkpoint that a stage starts from.

    Args:
        run: folder of the training.
        stage: its name.
        before: the name of the stage that it follows.

    Raises:
        DataError: when that was not trained in this folder.
    """
    path = run / f"{before}.pt"
    if not path.exists():
        hint = f"train stage {before} first, or name the folder that has it"
        raise DataError(complaint(f"the checkpoint that stage {stage} starts from", "exist", str(path), hint))
    return path


def make_folder(folder: Path) -> None:
    """Make a folder to write to; not before there is something to write, lest an empty one stays.

    Raises:
        DataError: when it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as cause:
        raise DataError(complaint("the output", "be a folder", str(folder), reason_of(cause))) from cause


def told(command: Callable[[], None]) -> int:
    """Run a command of the training; what was wrong with its input is said in a line, and the exit code is 2."""
    try:
        command()
    except TokentrimError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return 0
