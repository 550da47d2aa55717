"""Training of trainable strategies: a loop that any of them shares, and what one has to bring.

    result = tokentrim.train.run("quecc", "quecc.safetensors", {"steps": 2000})

The language model is never changed. Training sees a task's training samples, or its calibration split where it has
none; never a test question.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tokentrim.lazy import lazy

if TYPE_CHECKING:
    from tokentrim.train.answering import (
        Answering as Answering,
        answer_logits as answer_logits,
        per_sample as per_sample,
    )
    from tokentrim.train.data import IGNORE as IGNORE, Answered as Answered
    from tokentrim.train.runner import Trained as Trained, run as run
    from tokentrim.train.trainer import Group as Group, Trainer as Trainer, TrainOptions as TrainOptions

# So that the command line's help needs no torch.
__getattr__, __dir__, __all__ = lazy(
    __name__,
    {
        "train.answering": "Answering, answer_logits, per_sample",
        "train.data": "IGNORE, Answered",
        "train.runner": "Trained, run",
        "train.trainer": "Group, TrainOptions, Trainer",
    },
)
