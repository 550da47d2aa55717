"""Batches: the questions of one task as model inputs, made once and answered by every method."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tokentrim.errors import DataError, UnsupportedError, complaint
from tokentrim.loading import Loaded, prompt_inputs
from tokentrim.shape import ModelShape
from tokentrim.tasks import Sample, Task, evidence_scores


@dataclass(frozen=True)
class Batch:
    """Some questions of one task, all with the same number of visual tokens.

    Attributes:
        places: index of each question in the task's list.
        samples: the questions.
        inputs: model inputs on the host, left-padded.
        n_visual: visual tokens of every row.
        n_text: other tokens of every row, padding not counted.
    """

    places: tuple[int, ...]
    samples: tuple[Sample, ...]
    inputs: dict[str, Tensor]
    n_visual: int
    n_text: tuple[int, ...]


def make_batches(loaded: Loaded, samples: Sequence[Sample], size: int) -> list[Batch]:
    """Group questions by their number of visual tokens, then cut the groups into batches of ``size``.

    A knob that is solved for a budget depends on that number, so one batch has one strategy.
    """
    counted: dict[int, list[int]] = defaultdict(list)
    for place, sample in enumerate(samples):
        inputs = prompt_inputs(loaded.processor, [sample.question], [sample.images])
        counted[visual_tokens(loaded, inputs)[0]].append(place)
    return [
        make_batch(loaded, samples, places[start : start + size])
        for _, places in sorted(counted.items())
        for start in range(0, len(places), size)
    ]


def make_batch(loaded: Loaded, samples: Sequence[Sample], places: Sequence[int]) -> Batch:
    """The batch of the questions at ``places``."""
    chosen = tuple(samples[place] for place in places)
    inputs = prompt_inputs(loaded.processor, [s.question for s in chosen], [s.images for s in chosen])
    n_visual = visual_tokens(loaded, inputs)
    real = [int(n) for n in inputs["attention_mask"].sum(1)]
    if len(set(n_visual)) != 1:
        raise DataError(complaint("a batch", "have one number of visual tokens", sorted(set(n_visual))))
    n_text = tuple(all_tokens - n_visual[0] for all_tokens in real)
    return Batch(tuple(places), chosen, dict(inputs), n_visual[0], n_text)


def model_inputs(loaded: Loaded, batch: Batch) -> dict[str, Tensor]:
    """A batch's inputs where the model is, floating-point ones in its number format."""
    model = loaded.model
    inputs = {name: value.to(model.device) for name, value in batch.inputs.items()}
    return inputs | {name: value.to(model.dtype) for name, value in inputs.items() if torch.is_floating_point(value)}


def visual_tokens(loaded: Loaded, inputs: Any) -> list[int]:
    """Visual tokens of each row, counted by the placeholder's id."""
    config: Any = loaded.model.config
    token = getattr(config, "image_token_id", None)
    token = config.image_token_index if token is None else token
    return [int(n) for n in (inputs["input_ids"] == token).sum(1)]


def expected_new_tokens(loaded: Loaded, samples: Sequence[Sample], limit: int) -> int:
    """Typical length of a right answer with its end token: what decode-time budgets are planned for."""
    lengths = [len(loaded.processor.tokenizer(s.answer, add_special_tokens=False)["input_ids"]) for s in samples]
    return max(1, min(limit, round(sum(lengths) / len(lengths)) + 1))


def evidence_of(task: Task, batch: Batch, shape: ModelShape) -> Tensor:
    """float [B, N]: how much the answer needs each visual token, image after image.

    Raises:
        UnsupportedError: when the task or the model cannot tell.
    """
    vision = shape.vision
    if vision is None or any(not sample.evidence for sample in batch.samples):
        raise UnsupportedError(
            complaint(f"task {task.name!r}", "know the evidence of each question for this strategy",
                      hint="leave the strategy out, or run it on the testbed's tasks")
        )  # fmt: skip
    rows = [
        torch.cat(
            [
                torch.from_numpy(
                    evidence_scores(sample.evidence, image.height, image.width, vision.rows, vision.cols, index)
                )
                for index, image in enumerate(sample.images)
            ]
        )
        for sample in batch.samples
    ]
    scores = torch.stack(rows).float()
    if scores.shape[1] != batch.n_visual:
        raise UnsupportedError(
            complaint("the evidence of a question", f"cover its {batch.n_visual} visual tokens", scores.shape[1],
                      "evidence needs a model whose images are one grid each")
        )  # fmt: skip
    return scores
