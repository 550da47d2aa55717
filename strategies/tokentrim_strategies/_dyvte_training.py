"""How the routers of ``dyvte`` are trained: would the model answer the same if the image left here?"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from tokentrim import Trainable, trim
from tokentrim.train import IGNORE, Answered, Trainer, TrainOptions, answer_logits, per_sample

if TYPE_CHECKING:
    import numpy as np

STAY, LEAVE = 0, 1


class DyVTEOptions(TrainOptions):
    """As everywhere, and what the labels are made by. Rate and decay are ours, for small routers and short runs."""

    boundaries: int = Field(
        default=4, ge=1, description="boundaries labelled per batch; 1 in the paper, which draws one layer per step"
    )
    agreement: float = Field(
        default=0.99, ge=0, le=1, description="share of answer tokens whose likeliest word must stay, exceeded"
    )
    loss_ratio: float = Field(
        default=1.03, gt=0, allow_inf_nan=False, description="bound on the loss without the image, in losses with it"
    )
    loss_slack: float = Field(
        default=0.0, ge=0, allow_inf_nan=False, description="nats per token added to that bound; 0 in the paper"
    )
    leave_weight: float = Field(
        default=1.0, gt=0, allow_inf_nan=False, description="weight of the class 'leave' against 'stay'; 1 in the paper"
    )
    width: int | None = Field(default=None, ge=1, description="hidden width of a router; default: the strategy's")


class DyVTETrainer(Trainer):
    """Cross-entropy of every drawn boundary's router on its label; nothing else gets a gradient.

    Label of a sample at boundary b: "leave" if, with the right answer given word by word, dropping every visual token
    at b leaves the likeliest word of more than ``agreement`` of the answer's tokens as it is, and the mean loss stays
    below ``loss_ratio`` times the loss with the image (plus ``loss_slack``). From the released code: both conditions,
    their numbers, class weights 1 : 1, a random layer per step. Ours: labels per sample; image tokens are dropped by
    the engine itself instead of masked; several boundaries share the one run with the image; a router sees the prompt
    without the answer, as it will in use; AdamW's rate.
    """

    Options: ClassVar[type[TrainOptions]] = DyVTEOptions

    def sizes(self, strategy: Trainable) -> dict[str, int]:
        """The strategy's, or the width that the options ask for."""
        width: int | None = self.options.width
        return strategy.sizes(self.shape) if width is None else {"width": width}

    def loss(self, model: Any, batch: Answered, rng: np.random.Generator) -> tuple[Tensor, dict[str, float]]:
        """See the class; figures: the loss, the share of right decisions, and of labels that say "leave"."""
        options: DyVTEOptions = self.options
        drawn = 1 + rng.permutation(self.shape.n_layers - 1)[: options.boundaries]
        seen = Constant(-1)
        with torch.no_grad():
            with trim(model, self.strategy.holding(seen), record=False):
                full = answer_logits(model, batch)
            labels = {int(b): self._labels(model, batch, int(b), full) for b in drawn}
        weight = full.new_tensor([1.0, options.leave_weight])
        logits = {b: self.module(b, *of_prompt(*seen.texts[b], batch.n_answer)) for b in labels}
        loss = torch.stack([F.cross_entropy(logits[b], label, weight) for b, label in labels.items()]).mean()
        right = [(logits[b][:, LEAVE] > logits[b][:, STAY]) == (label == LEAVE) for b, label in labels.items()]
        leave = torch.stack(list(labels.values())).float().mean()
        return loss, {
            "loss": float(loss.detach()),
            "right": float(torch.stack(right).float().mean()),
            "leave": float(leave),
        }

    def _labels(self, model: Any, batch: Answered, boundary: int, full: Tensor) -> Tensor:
        """int64 [B]."""
        options: DyVTEOptions = self.options
        with trim(model, self.strategy.holding(Constant(boundary)), record=False):
            without = answer_logits(model, batch)
        real = batch.labels != IGNORE
        same = (without.argmax(dim=-1) == full.argmax(dim=-1)) & real
        agrees = same.sum(dim=1) > options.agreement * real.sum(dim=1)
        bound = options.loss_ratio * per_sample(full, batch.labels)[0] + options.loss_slack
        return (agrees & (per_sample(without, batch.labels)[0] < bound)).long()


class Constant(nn.Module):
    """Routers that leave at one boundary (-1 = at none), whatever they see, and remember what they were shown."""

    def __init__(self, boundary: int) -> None:
        super().__init__()
        self.boundary = boundary
        self.texts: dict[int, tuple[Tensor, Tensor, Tensor]] = {}

    def forward(self, boundary: int, hidden: Tensor, valid: Tensor, behind: Tensor) -> Tensor:
        """float [B, 2]."""
        self.texts[boundary] = (hidden, valid, behind)
        decision = LEAVE if boundary == self.boundary else STAY
        return F.one_hot(torch.full((len(hidden),), decision, device=hidden.device), 2).float()


def of_prompt(hidden: Tensor, valid: Tensor, behind: Tensor, n_answer: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """What a router would have seen before any of the answer was there.

    Args:
        hidden: [B, T, d] of prompt and answer.
        valid: bool [B, T].
        behind: bool [B, T].
        n_answer: int64 [B]: tokens at the end of each row's text that belong to the answer.
    """
    places = torch.arange(hidden.shape[1], device=hidden.device)
    prompt = valid & (places < (valid.sum(dim=1) - n_answer).unsqueeze(1))
    return hidden, prompt, behind & prompt
