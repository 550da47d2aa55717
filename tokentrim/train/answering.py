"""The plainest trainer: the pruned model's answers are to be right. For any strategy that gradients go through."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch.nn.functional as F
from torch import Tensor

from tokentrim.session import trim
from tokentrim.train.data import IGNORE, Answered
from tokentrim.train.trainer import Trainer

if TYPE_CHECKING:
    import numpy as np


class Answering(Trainer):
    """Cross-entropy of the right answers' tokens under the frozen model, which runs pruned, through the engine.

    The mean over a sample's answer tokens, then over samples, so that a long answer weighs as much as a short one.
    """

    def loss(self, model: Any, batch: Answered, rng: np.random.Generator) -> tuple[Tensor, dict[str, float]]:
        """See the class; figures: the loss, and the share of samples whose every answer token is the likeliest."""
        losses, right = per_sample(self.logits(model, batch), batch.labels)
        loss = losses.mean()
        return loss, {"loss": float(loss.detach()), "right": float(right.float().mean())}

    def logits(self, model: Any, batch: Answered) -> Tensor:
        """float32 [B, A, V]. A strategy that reads all of the text must hide the answers here: it would learn them."""
        with trim(model, self.strategy, record=False):
            return answer_logits(model, batch)


def answer_logits(model: Any, batch: Answered) -> Tensor:
    """float32 [B, A, V]: logits of the answers' columns, each of which predicts the label that stands in it."""
    width = batch.labels.shape[1]
    return model(**batch.inputs, logits_to_keep=width + 1, use_cache=False).logits[:, :-1].float()


def per_sample(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """(mean loss float [B], whether every answer token is the likeliest bool [B]).

    Args:
        logits: [B, A, V].
        labels: int64 [B, A], :data:`IGNORE` where there is no answer token.
    """
    real = labels != IGNORE
    losses = F.cross_entropy(logits.transpose(1, 2), labels, reduction="none", ignore_index=IGNORE)
    right = (logits.argmax(dim=-1) == labels) | ~real
    return losses.sum(dim=1) / real.sum(dim=1).clamp(min=1), right.all(dim=1)
