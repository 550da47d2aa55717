"""How often the host waits for the device: once or twice per prompt, to learn its shape, and never at a decode step.

On a CPU nothing waits, so the calls that would are counted: whatever turns a tensor into numbers of the host.
"""

from __future__ import annotations

import inspect
from collections import Counter
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

import tokentrim
from tests.engine.cases import ATTENDING_OTHERWISE, FIRST, SPECS, trimmed
from tests.models import prompt, tiny_llava
from tokentrim.config.specs import strategy_from
from tokentrim.contracts.sites import Need

_READS = {
    Tensor.item, Tensor.tolist, Tensor.numpy, Tensor.cpu, Tensor.__bool__, Tensor.__int__, Tensor.__float__,
    Tensor.__index__, Tensor.nonzero, torch.nonzero, Tensor.masked_select, torch.masked_select, Tensor.unique,
    torch.unique, Tensor.equal, torch.equal, Tensor.allclose, torch.allclose,
}  # fmt: skip
STEPS = 6
# Not "/tokentrim/": the folder of a clone is called that too, and holds everything that is installed.
_CORE = f"{Path(tokentrim.__file__).parent}/"


class Reads(TorchFunctionMode):
    """Counts reads by who caused them: ``model``, ``strategy``, or a file of the core."""

    def __init__(self) -> None:
        super().__init__()
        self.by: Counter[str] = Counter()

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        picks = args[1] if function is Tensor.__getitem__ else ()
        masks = [one for one in (picks if isinstance(picks, tuple) else (picks,)) if isinstance(one, Tensor)]
        if function in _READS or any(mask.dtype == torch.bool for mask in masks):
            self.by[self._who()] += 1
        return function(*args, **(kwargs or {}))

    @staticmethod
    def _who() -> str:
        files, frame = list[str](), inspect.currentframe()
        while frame is not None:
            files.append(frame.f_code.co_filename)
            frame = frame.f_back
        if any("tokentrim_strategies" in file for file in files):
            return "strategy"
        last = next(file for file in files if "/torch/" not in file and file != __file__)
        return last.rpartition("/")[2] if last.startswith(_CORE) else "model"


@lru_cache(maxsize=1)
def _model() -> Any:
    return tiny_llava(side=4)


def _asks_a_guide(name: str) -> bool:
    return Need.GUIDE in strategy_from(SPECS[name]).strategy.needed()


@pytest.mark.parametrize("name", [name for name in [*FIRST, *ATTENDING_OTHERWISE] if not _asks_a_guide(name)])
def test_the_core_reads_the_device_twice_a_prompt_at_most(name: str) -> None:
    model = _model()
    inputs = prompt(model, [3, "image", 5], [9], [2, "image", 4, "image", 7])
    with trimmed(model, SPECS[name], inputs), Reads() as reads:
        model.generate(**inputs, max_new_tokens=STEPS, do_sample=False)
    core = {who: count for who, count in reads.by.items() if who not in ("model", "strategy")}
    # deciding.py reads when the answer is there: whether decisions were sound.
    # Which keys a block of visual queries is near to is a shape, so whoever edits attention reads the grid once.
    edits = {"bands.py"} if strategy_from(SPECS[name]).strategy.attention_part is not None else set[str]()
    # Whether a placeholder is one patch is told by numbers that never were on the device.
    hosts = {"merging.py"} if Need.TOWER_GROUPS in strategy_from(SPECS[name]).strategy.needed() else set[str]()
    assert set(core) <= {"stream.py", "placement.py", "deciding.py"} | edits | hosts, core
    assert all(count == 1 for count in core.values()), core


def test_reads_are_noticed() -> None:
    with Reads() as reads:
        assert bool(torch.ones(2)[torch.tensor([True, False])].sum().item())
    assert sum(reads.by.values()) == 2
