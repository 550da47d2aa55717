"""Training batches: samples that no split holds where a task can make them, questions and answers as model inputs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from tokentrim.contracts.tasks import Sample
from tokentrim.loading import Loaded, on_device
from tokentrim.plugins.loader import registry
from tokentrim.runs.batches import answer_tokens, sample_inputs
from tokentrim.runs.questions import training_of

IGNORE: Final = -100
"""Label of a column that holds no answer token."""

_HANDFUL: Final = 32  # samples of a task that a round takes, or fewer
_ROUND, _STEP = 0, 1  # streams of random numbers


@dataclass(frozen=True)
class Answered:
    """A batch of questions with their answers behind them, right-aligned.

    Attributes:
        inputs: model inputs where the model is; columns are padding, prompt, answer.
        labels: int64 [B, A], the answers' tokens in the last A columns, :data:`IGNORE` before a shorter answer.
        n_answer: int64 [B]: answer tokens of each row.
    """

    inputs: dict[str, Tensor]
    labels: Tensor
    n_answer: Tensor


def step_rng(seed: int, step: int) -> np.random.Generator:
    """The random numbers of a step, the same however often training was interrupted."""
    return np.random.default_rng([seed, step, _STEP])


class Rounds:
    """Batches by step. A round is a handful of every task's samples, mixed; it has a fixed number of steps.

    Samples with answers of like length share a batch, since padding costs as much as text.
    """

    def __init__(self, tasks: Sequence[str], batch_size: int, seed: int) -> None:
        self._tasks = [registry("task").get(name) for name in tasks]
        self._batch, self._seed = batch_size, seed
        self.steps = max(1, len(tasks) * _HANDFUL // batch_size)
        self._round, self._samples = -1, list[list[Sample]]()

    def samples(self, step: int) -> list[Sample]:
        """The samples of a step, a function of the step and the seed."""
        number, place = divmod(step, self.steps)
        if number != self._round:
            self._round, self._samples = number, self._mixed(number)
        return self._samples[place]

    def _mixed(self, number: int) -> list[list[Sample]]:
        rng = np.random.default_rng([self._seed, number, _ROUND])
        found = [sample for task in self._tasks for sample in training_of(task, number)[:_HANDFUL]]
        order = rng.permutation(self.steps * self._batch) % len(found)  # a small round is gone through again
        chosen = sorted((found[int(place)] for place in order), key=lambda sample: len(sample.answer.split()))
        batches = [chosen[start : start + self._batch] for start in range(0, len(chosen), self._batch)]
        return [batches[place] for place in rng.permutation(self.steps)]


def answered(loaded: Loaded, samples: Sequence[Sample]) -> Answered:
    """Samples as a batch to learn from."""
    prompts = dict(sample_inputs(loaded, samples))
    answers = [answer_tokens(loaded, sample.answer) for sample in samples]
    mask = prompts["attention_mask"].bool()
    n_prompt = [int(n) for n in mask.sum(1)]
    width = max(map(len, answers))
    length = max(n + len(answer) for n, answer in zip(n_prompt, answers, strict=True))
    pad: int = loaded.processor.tokenizer.pad_token_id
    by_token = {name: value for name, value in prompts.items() if value.shape == mask.shape}
    aligned = {name: torch.zeros(len(samples), length, dtype=value.dtype) for name, value in by_token.items()}
    aligned["input_ids"].fill_(pad)
    labels = torch.full((len(samples), width), IGNORE)
    for row, answer in enumerate(answers):
        end = length - len(answer)
        for name, value in by_token.items():
            aligned[name][row, end - n_prompt[row] : end] = value[row, mask[row]]
        aligned["input_ids"][row, end:] = torch.tensor(answer)
        aligned["attention_mask"][row, end:] = 1
        labels[row, width - len(answer) :] = torch.tensor(answer)
    model: Any = loaded.model
    inputs = on_device(model, {**prompts, **aligned})
    lengths = torch.tensor([len(answer) for answer in answers], device=model.device)
    return Answered(inputs, labels.to(model.device), lengths)
