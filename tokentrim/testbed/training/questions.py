"""The short questions in array form: one question of a kind about every picture of a training batch.

It asks what `tasks` asks, for a whole batch at once and about chosen objects only, where some may be dropped.
"""

from collections.abc import Callable
from typing import Final, NamedTuple

import numpy as np

from tokentrim.testbed import vocabulary as words
from tokentrim.testbed.scenes import CELLS, Bools, Ints, Scenes

COLOR_IDS: Final = np.array([words.IDS[word] for word in words.COLORS])
GLYPH_IDS: Final = np.array([words.IDS[word] for word in words.GLYPHS])
NUMBER_IDS: Final = np.array([words.IDS[word] for word in words.NUMBERS])
ROW_IDS: Final = np.array([words.IDS[word] for word in words.ROWS])
COLUMN_IDS: Final = np.array([words.IDS[word] for word in words.COLUMNS])
_NOTHING_PER_QUESTION: Final = 0.25
_ANY_COLOR_PER_QUESTION: Final = 0.35


class AskedBatch(NamedTuple):
    """Token ids [batch] of each place of question and answer; which pictures the question fits [batch]."""

    question: list[Ints]
    answer: list[Ints]
    valid: Bools


Visible = Bools | None  # [batch, slots]: objects that a question may be about; None: all
Asker = Callable[[np.random.Generator, Scenes, Visible], AskedBatch]


def repeated(batch: int, *texts: str) -> list[Ints]:
    """The same words for every picture, one array [batch] per word."""
    return [np.full(batch, words.IDS[text]) for text in texts]


def _pick(rng: np.random.Generator, eligible: Bools) -> tuple[Ints, Bools]:
    """One eligible slot per row, and whether there was any."""
    return np.argmax(rng.random(eligible.shape) * eligible, axis=1), np.asarray(eligible.any(1))


def _candidates(scenes: Scenes, visible: Visible) -> Bools:
    return scenes.present if visible is None else scenes.present & visible


def _alone(scenes: Scenes, key: Ints) -> Bools:
    """Objects whose key no other object of the scene shares."""
    same = (key[:, :, None] == key[:, None, :]) & scenes.present[:, None, :]
    return scenes.present & (same.sum(2) == 1)


def ask_color(rng: np.random.Generator, scenes: Scenes, visible: Visible) -> AskedBatch:
    """Colour of an object whose glyph occurs once."""
    rows = np.arange(len(scenes.cell))
    slot, valid = _pick(rng, _alone(scenes, scenes.glyph) & _candidates(scenes, visible))
    glyph, color = scenes.glyph[rows, slot], scenes.color[rows, slot]
    question = [*repeated(len(rows), "color", "of"), GLYPH_IDS[glyph], *repeated(len(rows), "?")]
    return AskedBatch(question, [COLOR_IDS[color]], valid)


def ask_what(rng: np.random.Generator, scenes: Scenes, visible: Visible) -> AskedBatch:
    """Glyph of an object whose colour occurs once."""
    rows = np.arange(len(scenes.cell))
    slot, valid = _pick(rng, _alone(scenes, scenes.color) & _candidates(scenes, visible))
    glyph, color = scenes.glyph[rows, slot], scenes.color[rows, slot]
    question = [*repeated(len(rows), "what", "is"), COLOR_IDS[color], *repeated(len(rows), "?")]
    return AskedBatch(question, [GLYPH_IDS[glyph]], valid)


def _color_to_count(rng: np.random.Generator, scenes: Scenes, allowed: Bools | None) -> Ints:
    """A colour per scene, often one that occurs, so that 0 is not the usual answer.

    allowed [batch, colours]: colours of which no object is missing.
    """
    rows = np.arange(len(scenes.cell))
    anything = rng.integers(0, len(words.COLORS), len(rows))
    slot, _ = _pick(rng, scenes.present)
    color = np.where(rng.random(len(rows)) < _ANY_COLOR_PER_QUESTION, anything, scenes.color[rows, slot])
    if allowed is None:
        return color
    other, _ = _pick(rng, allowed)
    return np.where(allowed[rows, color], color, other)


def ask_count_color(rng: np.random.Generator, scenes: Scenes, visible: Visible) -> AskedBatch:
    """Number of objects of a colour."""
    rows = np.arange(len(scenes.cell))
    is_color = (scenes.color[..., None] == np.arange(len(words.COLORS))) & scenes.present[..., None]
    allowed = None if visible is None else ~(is_color & ~visible[..., None]).any(1)
    color = _color_to_count(rng, scenes, allowed)
    valid = np.ones(len(rows), np.bool_) if allowed is None else allowed[rows, color]
    amount = is_color.sum(1)[rows, color]
    question = [*repeated(len(rows), "count"), COLOR_IDS[color], *repeated(len(rows), "?")]
    return AskedBatch(question, [NUMBER_IDS[amount]], valid)


def ask_count_all(rng: np.random.Generator, scenes: Scenes, visible: Visible) -> AskedBatch:
    """Number of objects."""
    del rng
    valid = (scenes.present == _candidates(scenes, visible)).all(1)
    return AskedBatch(repeated(len(scenes.cell), "count", "all", "?"), [NUMBER_IDS[scenes.count]], valid)


def ask_at(rng: np.random.Generator, scenes: Scenes, visible: Visible) -> AskedBatch:
    """Object in a cell, or nothing."""
    rows = np.arange(len(scenes.cell))
    slot, valid = _pick(rng, _candidates(scenes, visible))
    cells = np.arange(CELLS * CELLS)
    outside = (cells // CELLS >= scenes.canvas.rows) | (cells % CELLS >= scenes.canvas.columns)
    used = np.repeat(outside[None], len(rows), 0)
    used[np.nonzero(scenes.present)[0], scenes.cell[scenes.present]] = True
    hole, has_hole = _pick(rng, ~used)
    empty = (rng.random(len(rows)) < _NOTHING_PER_QUESTION) & has_hole
    cell = np.where(empty, hole, scenes.cell[rows, slot])
    place = [ROW_IDS[cell // CELLS], COLUMN_IDS[cell % CELLS]]
    question = [*repeated(len(rows), "at"), *place, *repeated(len(rows), "?")]
    # "nothing" is one token shorter than other answers: the end token fills its place.
    first = np.where(empty, words.IDS[words.NOTHING], COLOR_IDS[scenes.color[rows, slot]])
    second = np.where(empty, words.IDS[words.END], GLYPH_IDS[scenes.glyph[rows, slot]])
    return AskedBatch(question, [first, second], valid | empty)


def ask_where(rng: np.random.Generator, scenes: Scenes, visible: Visible) -> AskedBatch:
    """Cell of an object of which there is one."""
    rows = np.arange(len(scenes.cell))
    kind = scenes.color * len(words.GLYPHS) + scenes.glyph
    slot, valid = _pick(rng, _alone(scenes, kind) & _candidates(scenes, visible))
    color, glyph, cell = scenes.color[rows, slot], scenes.glyph[rows, slot], scenes.cell[rows, slot]
    thing = [COLOR_IDS[color], GLYPH_IDS[glyph]]
    question = [*repeated(len(rows), "where"), *thing, *repeated(len(rows), "?")]
    return AskedBatch(question, [ROW_IDS[cell // CELLS], COLUMN_IDS[cell % CELLS]], valid)


ASKERS: Final[dict[str, Asker]] = {
    "color": ask_color,
    "what": ask_what,
    "count-color": ask_count_color,
    "count-all": ask_count_all,
    "at": ask_at,
    "where": ask_where,
}
