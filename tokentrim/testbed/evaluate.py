"""Evaluation without any pruning engine: drop visual tokens at the model's input, decode greedily.

It stays apart from the engine on purpose: it decides whether a model is fit to judge pruning, so it must not
depend on what is judged. Dropped tokens are really gone; the kept ones hold their original positions.
"""

from collections.abc import Callable, Sequence
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor
from transformers import LlavaForConditionalGeneration

from tokentrim.tasks import Sample, Task, evidence_scores
from tokentrim.testbed.model import encode_images, pixel_values
from tokentrim.testbed.packing import PREFIX
from tokentrim.testbed.scenes import GRID, IMAGE_SIZE, TOKENS
from tokentrim.testbed.vocabulary import ASSISTANT, BEGIN, END, IDS, USER, decode, encode

# Priority of every visual token of a sample, [tokens]; the highest stay.
Ranking = Callable[[int, Sample], np.ndarray]
_START: Final = 2
_BATCH: Final = 64


def oracle(index: int, sample: Sample) -> np.ndarray:
    """What the answer needs comes first."""
    del index
    return evidence_scores(sample.evidence, IMAGE_SIZE, IMAGE_SIZE, GRID, GRID)


def random_order(index: int, sample: Sample) -> np.ndarray:
    """A different random order for every sample, the same in every run."""
    del sample
    return np.random.default_rng([77, index]).random(TOKENS)


def predictions(
    model: LlavaForConditionalGeneration, task: Task, samples: Sequence[Sample], ranking: Ranking, kept: int
) -> list[str]:
    """Greedy answers with `kept` visual tokens of each picture."""
    order: list[int] = []
    answers: list[str] = []
    # Questions of one task may differ in length; samples of equal length share a batch, so nothing is padded.
    by_length: dict[int, list[int]] = {}
    for i, sample in enumerate(samples):
        by_length.setdefault(len(sample.question.split()), []).append(i)
    for group in by_length.values():
        for start in range(0, len(group), _BATCH):
            chunk = group[start : start + _BATCH]
            scores = np.stack([ranking(i, samples[i]) for i in chunk])
            answers += _answer(model, [samples[i] for i in chunk], torch.from_numpy(scores), kept, task.max_new_tokens)
            order += chunk
    return [answer for _, answer in sorted(zip(order, answers, strict=True))]


@torch.no_grad()
def _answer(
    model: LlavaForConditionalGeneration, samples: list[Sample], scores: Tensor, kept: int, limit: int
) -> list[str]:
    inner: Any = model.model
    language = inner.language_model
    pixels = pixel_values(np.stack([np.asarray(sample.images[0]) for sample in samples]))
    visual = inner.multi_modal_projector(encode_images(model, pixels)[0])
    chosen = scores.topk(kept, -1).indices.sort(-1).values if kept else torch.zeros(len(samples), 0, dtype=torch.int64)
    visual = visual.gather(1, chosen[..., None].expand(-1, -1, visual.shape[-1]))
    start = torch.tensor([[IDS[BEGIN], IDS[USER]]]).expand(len(samples), -1)
    question = torch.tensor([[*encode(sample.question), IDS[ASSISTANT]] for sample in samples])
    hidden = torch.cat([language.embed_tokens(start), visual, language.embed_tokens(question)], 1)
    behind = torch.arange(PREFIX, PREFIX + question.shape[1]).expand(len(samples), -1)
    position = torch.cat([torch.arange(_START).expand(len(samples), -1), chosen + _START, behind], 1)
    words: list[Tensor] = []
    ended = torch.zeros(len(samples), dtype=torch.bool)
    cache = None
    for _ in range(limit):
        out = language(inputs_embeds=hidden, position_ids=position, past_key_values=cache, use_cache=True)
        cache = out.past_key_values
        word = model.lm_head(out.last_hidden_state[:, -1]).argmax(-1)
        ended |= word == IDS[END]
        words.append(torch.where(ended, IDS[END], word))
        if bool(ended.all()):
            break
        hidden, position = language.embed_tokens(word[:, None]), position[:, -1:] + 1
    return [decode(row) for row in torch.stack(words, 1).tolist()]


def mean_score(
    model: LlavaForConditionalGeneration, task: Task, samples: Sequence[Sample], ranking: Ranking, kept: int
) -> float:
    """Mean score of a task under one selection, 0 to 1."""
    said = predictions(model, task, samples, ranking, kept)
    return float(np.mean([task.score(sample, text) for sample, text in zip(samples, said, strict=True)]))
