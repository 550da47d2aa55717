"""Evaluation without any pruning engine: drop visual tokens at the model's input, decode greedily.

It stays apart from the engine on purpose: it decides whether a model is fit to judge pruning, so it must not
depend on what is judged. Dropped tokens are really gone; the kept ones hold their original positions.
"""

from collections.abc import Callable, Sequence
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from tokentrim.contracts.tasks import Sample, Task, evidence_over
from tokentrim.testbed.scenes import Canvas
from tokentrim.testbed.training.families import family_of
from tokentrim.testbed.training.family import TestbedFamily
from tokentrim.testbed.training.view import View
from tokentrim.testbed.vocabulary import ASSISTANT, END, IDS, SPECIAL

# Priority of every visual token of a sample, [tokens]; the highest stay, and structure always does.
Ranking = Callable[[int, Sample, View], np.ndarray]
Setting = tuple[Ranking, float]
"""Which tokens go on first, and the share of them that stays."""
_BATCH: Final = 64


def oracle(index: int, sample: Sample, view: View) -> np.ndarray:
    """What the answer needs comes first."""
    del index
    size = (view.canvas.height, view.canvas.width)
    return evidence_over(sample.evidence, [size], np.zeros(view.tokens, np.int64), *view.grid)


def random_order(index: int, sample: Sample, view: View) -> np.ndarray:
    """A different random order for every sample, the same in every run."""
    del sample
    return np.random.default_rng([77, index]).random(view.tokens)


def kept_tokens(share: float, view: View) -> int:
    """How many visual tokens stay when a share of those that show something does; structure is not counted."""
    if not 0 <= share <= 1:
        raise ValueError(f"share of kept tokens must be from 0 to 1; got {share}")
    return int(share * view.pictorial)


def predictions(model: Any, task: Task, samples: Sequence[Sample], ranking: Ranking, share: float) -> list[str]:
    """Greedy answers with a share of each picture's visual tokens."""
    return _predictions(model, task, samples, [(ranking, share)])[0]


@torch.no_grad()
def _predictions(model: Any, task: Task, samples: Sequence[Sample], settings: Sequence[Setting]) -> list[list[str]]:
    """Answers under every setting; the tower sees each picture once."""
    family = family_of(model)
    order: list[int] = []
    answers: list[list[str]] = [[] for _ in settings]
    # Samples of equal size and equal length of the question share a batch, so nothing is padded.
    groups: dict[tuple[int, int, int], list[int]] = {}
    for i, sample in enumerate(samples):
        key = (sample.images[0].height, sample.images[0].width, len(sample.question.split()))
        groups.setdefault(key, []).append(i)
    for (height, width, _), group in groups.items():
        view = family.view(Canvas(height, width))
        for start in range(0, len(group), _BATCH):
            chunk = group[start : start + _BATCH]
            asked = [samples[i] for i in chunk]
            pixels = family.pixels(np.stack([np.asarray(sample.images[0]) for sample in asked]), view)
            visual = family.encode(model, pixels, view).visual
            for said, (ranking, share) in zip(answers, settings, strict=True):
                scores = torch.from_numpy(np.stack([ranking(i, samples[i], view) for i in chunk]))
                kept = kept_tokens(share, view)
                said += _answer(model, family, view, asked, visual, scores, kept, task.max_new_tokens)
            order += chunk
    return [[answer for _, answer in sorted(zip(order, said, strict=True))] for said in answers]


def _answer(
    model: Any,
    family: TestbedFamily,
    view: View,
    samples: list[Sample],
    visual: Tensor,
    scores: Tensor,
    kept: int,
    limit: int,
) -> list[str]:
    language = model.model.language_model
    batch = len(samples)
    scores = scores.masked_fill(torch.from_numpy(view.structure), torch.inf)
    stays = kept + view.tokens - view.pictorial
    chosen = scores.topk(stays, -1).indices.sort(-1).values
    visual = visual.gather(1, chosen[..., None].expand(-1, -1, visual.shape[-1]))
    question = torch.tensor(
        [[family.words[word] for word in (*sample.question.split(), ASSISTANT)] for sample in samples]
    )
    start, end = (torch.tensor(ids, dtype=torch.int64).expand(batch, -1) for ids in (view.start, view.end))
    words = language.embed_tokens(torch.cat([start, end, question], 1))
    hidden = torch.cat([words[:, : len(view.start)], visual, words[:, len(view.start) :]], 1)
    # Places in the whole sequence of all that goes on, and their positions on every axis.
    first, behind = len(view.start), view.tokens + len(view.start)
    total = view.length + question.shape[1]
    places = [torch.arange(first).expand(batch, -1), chosen + first, torch.arange(behind, total).expand(batch, -1)]
    text = view.text_from + torch.arange(question.shape[1]).expand(len(view.prefix), -1)
    position = torch.cat([view.prefix, text], 1)[:, torch.cat(places, 1)]
    said: list[Tensor] = []
    ended = torch.zeros(batch, dtype=torch.bool)
    cache = None
    for _ in range(limit):
        axes = position[0] if len(position) == 1 else position
        out = language(inputs_embeds=hidden, position_ids=axes, past_key_values=cache, use_cache=True)
        cache = out.past_key_values
        word = model.lm_head(out.last_hidden_state[:, -1]).argmax(-1)
        ended |= word == IDS[END]
        said.append(torch.where(ended, IDS[END], word))
        if bool(ended.all()):
            break
        hidden, position = language.embed_tokens(word[:, None]), position[..., -1:] + 1
    spoken = {i: word for word, i in family.words.items() if word not in SPECIAL}
    return [" ".join(spoken[i] for i in row if i in spoken) for row in torch.stack(said, 1).tolist()]


def mean_score(model: Any, task: Task, samples: Sequence[Sample], ranking: Ranking, share: float) -> float:
    """Mean score of a task under one selection, 0 to 1."""
    return mean_scores(model, task, samples, [(ranking, share)])[0]


def mean_scores(model: Any, task: Task, samples: Sequence[Sample], settings: Sequence[Setting]) -> list[float]:
    """The same under several."""
    means: list[float] = []
    for said in _predictions(model, task, samples, settings):
        scores = [task.score(sample, text) for sample, text in zip(samples, said, strict=True)]
        means.append(float(np.mean([s for s in scores if s is not None])))  # the testbed's tasks score every answer
    return means
