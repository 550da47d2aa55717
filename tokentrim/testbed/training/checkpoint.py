"""Training checkpoints: one file per stage, replaced atomically, so that a killed run can always go on."""

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor


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
        """Read a file without running any code of it."""
        data = torch.load(path, weights_only=True)
        return cls(data["model"], data["heads"], data["optimizer"], TrainingProgress(**data["progress"]))
