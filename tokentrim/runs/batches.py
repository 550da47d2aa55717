"""Batches: the questions of one task as model inputs, made once and answered by every method."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tokentrim.contracts.sites import Grid
from tokentrim.contracts.tasks import Sample, Task, evidence_over
from tokentrim.errors import DataError, UnsupportedError, complaint
from tokentrim.loading import Loaded, conversation_inputs, on_device, require_watching, single_turn
from tokentrim.session import adapter_of


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


def visual_tokens(loaded: Loaded, inputs: Any, images: Sequence[Sequence[Any]]) -> list[int]:
    """Visual tokens of each row of a prompt: its placeholders, without line ends and other structure.

    Args:
        loaded: the model and its processor.
        inputs: what the processor made.
        images: the images of each row.
    """
    config: Any = loaded.model.config
    image = getattr(config, "image_token_id", None)
    placeholders = [config.image_token_index if image is None else image, getattr(config, "video_token_id", None)]
    ids: Tensor = inputs["input_ids"]
    counted = torch.stack([ids == token for token in placeholders if token is not None]).any(0).sum(1).tolist()
    vision = adapter_of(loaded.model).shape(config).vision
    if vision is None:
        return counted
    return [
        n - sum(vision.for_image(image.height, image.width, len(row)).n_structure for image in row)
        for n, row in zip(counted, images, strict=True)
    ]


def make_batches(loaded: Loaded, samples: Sequence[Sample], size: int) -> list[Batch]:
    """Group questions by their number of visual tokens, then cut the groups into batches of ``size``.

    A knob that is solved for a budget depends on that number, so one batch has one strategy.
    """
    counted: dict[int, list[int]] = defaultdict(list)
    for place, sample in enumerate(samples):
        inputs = sample_inputs(loaded, [sample])
        counted[visual_tokens(loaded, inputs, [sample.images])[0]].append(place)
    return [
        make_batch(loaded, samples, places[start : start + size])
        for _, places in sorted(counted.items())
        for start in range(0, len(places), size)
    ]


def make_batch(loaded: Loaded, samples: Sequence[Sample], places: Sequence[int]) -> Batch:
    """The batch of the questions at ``places``."""
    chosen = tuple(samples[place] for place in places)
    inputs = sample_inputs(loaded, chosen)
    n_visual = visual_tokens(loaded, inputs, [s.images for s in chosen])
    real = [int(n) for n in inputs["attention_mask"].sum(1)]
    if len(set(n_visual)) != 1:
        raise DataError(complaint("a batch", "have one number of visual tokens", sorted(set(n_visual))))
    n_text = tuple(all_tokens - n_visual[0] for all_tokens in real)
    return Batch(tuple(places), chosen, dict(inputs), n_visual[0], n_text)


def sample_inputs(loaded: Loaded, samples: Sequence[Sample]) -> Any:
    """What the processor makes of samples: of their conversation, or of their images, videos and question.

    Raises:
        UnsupportedError: for videos, when the model takes none.
        DataError: when the processor refuses them.
    """
    turns = [s.messages or single_turn(s.question, len(s.images), len(s.videos)) for s in samples]
    videos = [video for sample in samples for video in sample.videos]
    if videos:
        watching = next(sample.id for sample in samples if sample.videos)
        question = f"question {watching!r}" if watching else "the question"
        require_watching(loaded.processor, str(loaded.model.config.name_or_path), question)
    return conversation_inputs(loaded.processor, turns, [s.images for s in samples], videos)


def model_inputs(loaded: Loaded, batch: Batch) -> dict[str, Tensor]:
    """A batch's inputs where the model is, floating-point ones in its number format."""
    return on_device(loaded.model, batch.inputs)


def expected_new_tokens(loaded: Loaded, samples: Sequence[Sample], limit: int) -> int:
    """Typical length of a right answer with its end token: what decode-time budgets are planned for."""
    lengths = [len(loaded.processor.tokenizer(s.answer, add_special_tokens=False)["input_ids"]) for s in samples]
    return max(1, min(limit, round(sum(lengths) / len(lengths)) + 1))


def answer_tokens(loaded: Loaded, answer: str) -> list[int]:
    """An answer as the model would have to say it: its tokens, as they are without context, and the end token."""
    ends: Any = loaded.model.generation_config.eos_token_id
    tokens: list[int] = loaded.processor.tokenizer(answer, add_special_tokens=False)["input_ids"]
    return [*tokens, *([] if ends is None else [ends] if isinstance(ends, int) else ends[:1])]


def evidence_of(task: Task, batch: Batch) -> Callable[[Grid], list[Tensor]]:
    """How much the answer needs each visual token, once the prompt's grid is known: one row per sample.

    Raises:
        UnsupportedError: when the task cannot tell.
    """
    if any(not sample.evidence for sample in batch.samples):
        raise UnsupportedError(
            complaint(f"task {task.name!r}", "know the evidence of each question for this strategy",
                      hint="leave the strategy out, or run it on the testbed's tasks")
        )  # fmt: skip

    def over(grid: Grid) -> list[Tensor]:
        found: list[Tensor] = []
        for row, sample in enumerate(batch.samples):
            real = grid.image[row] >= 0
            where = (part[row][real].cpu().numpy() for part in (grid.image, grid.row, grid.col, grid.rows, grid.cols))
            shown = (*sample.images, *(video.frames[0] for video in sample.videos))
            sizes = [(image.height, image.width) for image in shown]
            found.append(torch.from_numpy(evidence_over(sample.evidence, sizes, *where)).float())
        return found

    return over
