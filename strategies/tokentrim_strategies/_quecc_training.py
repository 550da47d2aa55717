"""How the module of ``quecc`` is trained: the right answers' cross-entropy, from the question alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from tokentrim import trim
from tokentrim.train import Answered, Answering, Group, TrainOptions, answer_logits

if TYPE_CHECKING:
    from tokentrim_strategies._quecc_module import Compressor


class QueCCOptions(TrainOptions):
    """Options of a training of ``quecc``. Both of its own are ours: they set scales that the paper leaves open."""

    question_gain: float | None = Field(
        default=None,
        gt=0,
        allow_inf_nan=False,
        description="length of the question's vector at the start, per root of its width; left out: a picture token's",
    )
    output_rate: float = Field(
        default=10.0,
        gt=0,
        allow_inf_nan=False,
        description="learning rate of the last map, in multiples of the rate",
    )


class QueCCTrainer(Answering):
    """As :class:`~tokentrim.train.Answering`; the module is shown the prompt's text without the answer behind it.

    Two scales decide whether one token or four learn anything while the language model is frozen. The question is added
    to picture tokens, whose norm in a projector's output is many times a layer norm's: at gain 1 it is drowned. And the
    last map starts at zero and has to reach that norm, too; AdamW moves every weight by the learning rate at most.
    """

    Options: ClassVar[type[TrainOptions]] = QueCCOptions

    def begin(self, model: Any, batch: Answered) -> None:
        """Give the question's vector the picture tokens' length."""
        gain = self.options.question_gain
        if gain is None:
            seen = Measured(self.module)
            with torch.no_grad(), trim(model, self.strategy.holding(seen), record=False):
                answer_logits(model, batch)
            gain = seen.root_mean_square
        module: Any = self.module
        with torch.no_grad():
            module.question.norm.weight.fill_(gain)

    def groups(self) -> list[Group]:
        """The last map by itself."""
        module: Any = self.module
        last: list[nn.Parameter] = list(module.project[-1].parameters())
        own = {id(parameter) for parameter in last}
        rest = [parameter for parameter in self.module.parameters() if id(parameter) not in own]
        return [Group(rest), Group(last, self.options.output_rate)]

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


class Measured(nn.Module):
    """A module that remembers how long the picture tokens were that it was shown."""

    def __init__(self, module: Any) -> None:
        super().__init__()
        self.module, self.kernel = module, module.kernel
        self.root_mean_square = 1.0

    def forward(self, features: Tensor, members: Tensor, text: Tensor, real: Tensor) -> Tensor:
        """As the module's."""
        rows = torch.arange(len(features), device=features.device)[:, None, None].expand_as(members)
        there = members >= 0  # every real token is in one window; what is not, is padding
        self.root_mean_square = float(features.float()[rows[there], members[there]].square().mean().sqrt())
        return self.module(features, members, text, real)
