"""The state of a training: module and optimiser in one safetensors file, replaced atomically.

So kill -9 costs the steps since the last state at most.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from tokentrim.errors import ResultsError, complaint
from tokentrim.runs.files import make_folder, reading, write_atomic
from tokentrim.runs.specs import digest


class TrainingState:
    """Where a training stands, beside the weights file that is to come.

    ``steps`` is not part of what must be the same: a stopped training may be continued to another number of steps.
    """

    def __init__(self, out: Path, options: dict[str, Any]) -> None:
        """Name the state file of a training.

        Args:
            out: the weights file that is to come.
            options: all that decides the result but for the number of steps, as plain data.
        """
        self.path: Final = out.with_name(f".{out.name}.train.safetensors")
        self._options = options

    def save(self, step: int, module: nn.Module, optimizer: Optimizer, about: dict[str, Any]) -> None:
        """Write everything that going on needs.

        Raises:
            ResultsError: when it cannot be written.
        """
        from safetensors.torch import save_file

        tensors = {f"module.{name}": tensor for name, tensor in module.state_dict().items()}
        for index, values in optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{index}.{key}": torch.as_tensor(value) for key, value in values.items()}
        ready = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
        note = {"step": step, "hash": digest(self._options), "options": self._options, "about": about}
        metadata = {"training": json.dumps(note)}
        write_atomic(self.path, lambda part: save_file(ready, part, metadata=metadata))

    def load(self, module: nn.Module, optimizer: Optimizer) -> tuple[int, dict[str, Any]]:
        """(step to go on with, what was noted beside it); (0, {}) where there is no state.

        Raises:
            ResultsError: when the state is of another training, or is damaged.
        """
        from safetensors import SafetensorError, safe_open

        make_folder(self.path.parent)
        if not self.path.exists():
            return 0, {}
        opened: Any = safe_open
        with reading(self.path, "remove the file", SafetensorError), opened(self.path, framework="pt") as file:
            note: dict[str, Any] = json.loads(file.metadata()["training"])
            made, before, step, about = note["hash"], dict(note["options"]), int(note["step"]), dict(note["about"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        if made != digest(self._options):
            changed = {key for key in {*before, *self._options} if before.get(key) != self._options.get(key)}
            raise ResultsError(
                complaint(f"{self.path}", "be of this training", f"one that differs in {', '.join(sorted(changed))}",
                          "choose another --out, or remove the file to begin anew")
            )  # fmt: skip
        with reading(self.path, "remove the file", RuntimeError):
            _restore(module, optimizer, tensors)
        return step, about

    def remove(self) -> None:
        """Forget everything: the weights are written."""
        self.path.unlink(missing_ok=True)


def _restore(module: nn.Module, optimizer: Optimizer, tensors: dict[str, Tensor]) -> None:
    device = next(module.parameters()).device
    prefix = "module."
    weights = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
    module.load_state_dict({name: value.to(device) for name, value in weights.items()})
    states: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        if not name.startswith(prefix):
            _, index, key = name.split(".", 2)
            states.setdefault(int(index), {})[key] = value
    optimizer.load_state_dict({"state": states, "param_groups": optimizer.state_dict()["param_groups"]})
