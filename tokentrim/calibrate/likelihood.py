"""How likely the pruned model finds the right answers: a quality that, unlike a score, moves with every change."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessor

from tokentrim.loading import Loaded
from tokentrim.runs.batches import Batch, answer_tokens, model_inputs
from tokentrim.runs.cells import Cell
from tokentrim.runs.work import Work
from tokentrim.session import trim


def likelihood(cell: Cell, work: Work) -> float:
    """Mean over questions of the right answer's log-likelihood per token, its end token included, in nats (<= 0)."""
    found: list[float] = []
    for batch in work.batches:
        answers = [answer_tokens(work.loaded, sample.answer)[: cell.max_new_tokens] for sample in batch.samples]
        forced = Forced(answers)
        generate(cell, work.loaded, batch, max(map(len, answers)), logits_processor=[forced])
        found += forced.per_token()
    return statistics.fmean(found)


class Forced(LogitsProcessor):
    """Makes generate say given answers, and adds up how likely the model found them.

    Decoding goes through the cache as it always does, so pruning at decode steps counts too.
    """

    def __init__(self, answers: Sequence[Sequence[int]]) -> None:
        """``answers``: token ids of each row, at least one per row."""
        self.answers = answers
        self.sums = torch.zeros(len(answers), dtype=torch.float64)
        self.step = 0

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Scores [B, V] that leave only the next token of each row's answer."""
        rows = [row for row, answer in enumerate(self.answers) if self.step < len(answer)]
        wanted = torch.tensor([self.answers[row][self.step] for row in rows], device=scores.device)
        likely = torch.log_softmax(scores[rows].double(), dim=-1).gather(1, wanted.unsqueeze(1)).squeeze(1)
        self.sums[rows] += likely.cpu()
        forced = torch.full_like(scores, float("-inf"))
        forced[:, 0] = 0.0  # for rows whose answer is over; what they say no longer counts
        forced[rows] = float("-inf")
        forced[rows, wanted] = 0.0
        self.step += 1
        return forced

    def per_token(self) -> list[float]:
        """Mean log-likelihood per token of each row's answer."""
        return [float(total) / len(answer) for total, answer in zip(self.sums, self.answers, strict=True)]


def generate(cell: Cell, loaded: Loaded, batch: Batch, new_tokens: int, **options: Any) -> Any:
    """What generate returns for a batch under the cell's strategy, greedily."""
    with trim(loaded.model, cell.strategy, record=False), torch.inference_mode():
        return loaded.model.generate(
            **model_inputs(loaded, batch), max_new_tokens=new_tokens, do_sample=False, **options
        )
