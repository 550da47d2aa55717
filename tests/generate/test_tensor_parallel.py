"""Two processes that hold half of the heads each keep the same tokens, and those that one process would keep."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
import torch

from tests import warm
from tests.engine.cases import deviation
from tests.generate.tensor_parallel_rank import NAMES, answers
from tests.models import tiny_llava

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_two_ranks_keep_what_one_process_keeps(tmp_path: Path) -> None:
    model = tiny_llava(side=4)
    model.save_pretrained(tmp_path / "model")
    path = os.pathsep.join(str(ROOT / part) for part in (".", "strategies", "adapters"))
    command = [
        *(sys.executable, "-m", "tests.generate.tensor_parallel_rank"),
        *(str(tmp_path / "model"), str(tmp_path)),
    ]
    for done in warm.ranks(2, command, env={**os.environ, "PYTHONPATH": path, "CUDA_VISIBLE_DEVICES": ""}):
        assert done.returncode == 0, done.stderr[-3000:]
    first, second = (torch.load(tmp_path / f"rank{rank}.pt") for rank in (0, 1))
    alone = answers(model)
    for name in NAMES:
        for number, (a, b, c) in enumerate(zip(first[name], second[name], alone[name], strict=True)):
            assert torch.equal(a, b)
            if number == 1:  # logits: sums over heads are taken in another order
                assert deviation(a, c) < 1e-4
            else:
                assert torch.equal(a, c)
