"""How the module of ``quecc`` is trained: the right answers' cross-entropy, from the question alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from tokentrim.session import trim
from tokentrim.train.answering import Answering, answer_logits
from tokentrim.train.data import Answered

if TYPE_CHECKING:
    from tokentrim_strategies.quecc import Compressor


class QueCCTrainer(Answering):
    """As :class:`~tokentrim.train.Answering`; the module is shown the prompt's text without the answer behind it."""

    def logits(self, model: Any, batch: Answered) -> Tensor:
        """float32 [B, A, V]."""
        module: Any = self.module
        with trim(model, self.strategy.holding(PromptOnly(module, batch.n_answer)), record=False):
            return answer_logits(model, batch)


class PromptOnly(nn.Module):
    """A module that does not see the last ``n_answer`` text tokens of each row."""

    def __init__(self, module: Compressor, n_answer: Tensor) -> None:
        super().__init__()
        self.module, self.kernel, self.n_answer = module, module.kernel, n_answer

    def forward(self, features: Tensor, members: Tensor, text: Tensor, real: Tensor) -> Tensor:
        """As the module's."""
        places = torch.arange(real.shape[1], device=real.device)
        asked = real & (places < (real.sum(dim=1) - self.n_answer).unsqueeze(1))
        return self.module(features, members, text, asked)
