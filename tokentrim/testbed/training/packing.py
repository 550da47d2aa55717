"""Training text: many questions about one picture, packed into one sequence.

Every question is a segment of fixed length behind the picture. A segment sees the picture and itself, and its
positions start right after the picture, exactly as if the question stood alone.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Final, Literal

import numpy as np
import torch
from torch import Tensor

from tokentrim.testbed.scenes import CELLS, Floats, Ints, Scenes
from tokentrim.testbed.training.questions import ASKERS, COLOR_IDS, COLUMN_IDS, GLYPH_IDS, ROW_IDS, Visible, repeated
from tokentrim.testbed.training.view import SQUARE_VIEW, View
from tokentrim.testbed.vocabulary import ASSISTANT, COMMA, END, IDS, PAD

Caption = Literal["list-all", "list-where"]

IGNORE: Final = -100


@dataclass(frozen=True)
class AnswerWeights:
    """Loss weight of an answer token by kind of question, and of the end token after short answers."""

    caption: float = 1.0
    short: float = 1.5
    count_color: float = 6.0
    count_all: float = 10.0
    end: float = 0.5


@dataclass(frozen=True)
class Segment:
    """One question per picture [batch, length]: input ids, next-token labels, the labels' loss weights."""

    ids: Ints
    labels: Ints
    weights: Floats


@dataclass(frozen=True)
class Packed:
    """All segments side by side [batch, total], and their lengths."""

    ids: Tensor
    labels: Tensor
    weights: Tensor
    lengths: tuple[int, ...]


def short_segment(
    name: str, rng: np.random.Generator, scenes: Scenes, visible: Visible, weights: AnswerWeights
) -> Segment:
    """One short question per picture."""
    asked = ASKERS[name](rng, scenes, visible)
    prompt = [*asked.question, *repeated(len(scenes.cell), ASSISTANT)]
    ids = np.stack([*prompt, *asked.answer], 1)
    labels = np.full(ids.shape, IGNORE)
    labels[:, len(prompt) - 1 : -1] = np.stack(asked.answer, 1)
    labels[:, -1] = np.where(ids[:, -1] == IDS[END], IGNORE, IDS[END])
    labels[~asked.valid] = IGNORE
    weight = {"count-color": weights.count_color, "count-all": weights.count_all}.get(name, weights.short)
    return Segment(ids, labels, np.where(labels == IDS[END], weights.end, weight).astype(np.float32))


def caption_segment(kind: Caption, scenes: Scenes, weights: AnswerWeights) -> Segment:
    """The list of all objects in reading order, with or without their cells."""
    batch, slots = scenes.cell.shape
    columns = [COLOR_IDS[scenes.color], GLYPH_IDS[scenes.glyph]]
    if kind == "list-where":
        columns += [ROW_IDS[scenes.cell // CELLS], COLUMN_IDS[scenes.cell % CELLS]]
    columns.append(np.full((batch, slots), IDS[COMMA]))
    body = np.stack(columns, 2).reshape(batch, -1)
    length = scenes.count * len(columns) - 1  # no comma after the last object
    place = np.arange(body.shape[1])
    body = np.where(place < length[:, None], body, np.where(place == length[:, None], IDS[END], IGNORE))
    prompt = np.stack(repeated(batch, "list", "all" if kind == "list-all" else "where", "?", ASSISTANT), 1)
    labels = np.concatenate([np.full((batch, prompt.shape[1] - 1), IGNORE), body], 1)
    ids = np.concatenate([prompt, np.where(body == IGNORE, IDS[PAD], body)[:, :-1]], 1)
    return Segment(ids, labels, np.full(ids.shape, weights.caption, np.float32))


def pack(
    rng: np.random.Generator,
    scenes: Scenes,
    questions: tuple[str, ...],
    caption: Caption | None,
    visible: Visible,
    weights: AnswerWeights,
) -> Packed:
    """All questions and the caption behind each picture."""
    segments = [short_segment(name, rng, scenes, visible, weights) for name in questions]
    if caption is not None:
        segments.append(caption_segment(caption, scenes, weights))
    return Packed(
        torch.from_numpy(np.concatenate([s.ids for s in segments], 1)),
        torch.from_numpy(np.concatenate([s.labels for s in segments], 1)),
        torch.from_numpy(np.concatenate([s.weights for s in segments], 1)),
        tuple(s.ids.shape[1] for s in segments),
    )


@lru_cache(maxsize=256)
def layout(lengths: tuple[int, ...], view: View = SQUARE_VIEW) -> tuple[Tensor, Tensor]:
    """Additive attention mask [total, total] and positions [axes, total] of a picture with these segments."""
    before = view.length
    total = before + sum(lengths)
    owner = np.concatenate([np.full(before, -1), np.repeat(np.arange(len(lengths)), lengths)])
    causal = np.tril(np.ones((total, total), np.bool_))
    seen = causal & ((owner[None, :] == -1) | (owner[None, :] == owner[:, None]))
    behind = np.concatenate([np.arange(n) + view.text_from for n in lengths])
    position = torch.cat([view.prefix, torch.from_numpy(behind).expand(len(view.prefix), -1)], 1)
    mask = torch.zeros(total, total).masked_fill(~torch.from_numpy(seen), torch.finfo(torch.float32).min)
    return mask, position
