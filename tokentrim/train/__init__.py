"""Training of trainable strategies: a loop that any of them shares, and what one has to bring.

    result = tokentrim.train.run("quecc", "quecc.safetensors", {"steps": 2000})

The language model is never changed. Training sees a task's training samples, or its calibration split where it has
none; never a test question.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from tokentrim.train.answering import (
        Answering as Answering,
        answer_logits as answer_logits,
        per_sample as per_sample,
    )
    from tokentrim.train.data import IGNORE as IGNORE, Answered as Answered
    from tokentrim.train.runner import Trained as Trained, run as run
    from tokentrim.train.trainer import Group as Group, Trainer as Trainer, TrainOptions as TrainOptions

# Lazy, so that the command line's help needs no torch.
_HOME: Final = {
    "IGNORE": "data",
    "Answered": "data",
    "Answering": "answering",
    "Group": "trainer",
    "TrainOptions": "trainer",
    "Trained": "runner",
    "Trainer": "trainer",
    "answer_logits": "answering",
    "per_sample": "answering",
    "run": "runner",
}

__all__ = ["IGNORE", "Answered", "Answering", "Group", "TrainOptions", "Trained", "Trainer", "answer_logits",
           "per_sample", "run"]  # fmt: skip


def __getattr__(name: str) -> Any:
    """Import a public name on first use."""
    if name not in _HOME:
        raise AttributeError(f"module 'tokentrim.train' has no attribute {name!r}")
    return getattr(importlib.import_module(f"tokentrim.train.{_HOME[name]}"), name)
