"""Positions of what stays under M-RoPE: as in the unpruned model, though vLLM lays them out before a picture is seen.

Text knows its positions from the pictures' sizes alone. A picture's own tokens are first laid out at the position where
it begins; how far behind that each of them is, in time, height and width, travels in columns beside its features, and
is added when it enters the language model. A column holds a digit to base 256, so that no number format rounds it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

import torch
from torch import Tensor

_BASE: Final = 256
AXES: Final = 3
COLUMNS: Final = 3 * AXES
"""How many stand behind the features: three digits for each axis, the highest first, since hours of video need them."""


def laid_out(length: int, pictures: Iterable[tuple[int, int, int]]) -> Tensor:
    """int64 [3, length]: positions of a prompt, every picture's tokens where the picture begins.

    Args:
        length: tokens of the prompt, without what was pruned.
        pictures: in order: column of its first token, tokens that stay, and the positions that it takes up in the
            unpruned model (:func:`extent`).
    """
    line, column, position = torch.empty(length, dtype=torch.int64), 0, 0
    for first, stay, taken in pictures:
        text = first - column
        line[column:first] = torch.arange(position, position + text)
        line[first : first + stay] = position + text
        column, position = first + stay, position + text + taken
    line[column:] = torch.arange(position, position + length - column)
    return line.expand(AXES, -1).clone()


def extent(whole: Tensor) -> int:
    """How many positions lie from the beginning to behind the last one in time, height or width."""
    return int(whole.max()) + 1


def grid(frames: int, rows: int, cols: int, per_frame: float = 1.0) -> Tensor:
    """int64 [3, tokens]: how far behind its beginning each token of a picture is, frame after frame in raster order.

    Args:
        frames: temporal patches.
        rows: of tokens.
        cols: of tokens.
        per_frame: positions from one frame to the next; products are rounded down in double precision, as by vLLM.
    """
    time = (torch.arange(frames, dtype=torch.float64) * per_frame).long()
    axes = torch.meshgrid(time, torch.arange(rows), torch.arange(cols), indexing="ij")
    return torch.stack([axis.flatten() for axis in axes])


def stamped(visual: Tensor, rows: int, cols: int) -> Tensor:
    """int64 [3, tokens]: the same for a video whose frames stand between text, each a picture of its own.

    Args:
        visual: bool [tokens]: which are no text.
        rows: of each frame's tokens.
        cols: of each frame's tokens.
    """
    columns, frame = visual.nonzero()[:, 0], grid(1, rows, cols)
    per_frame = rows * cols
    found = laid_out(len(visual), [(first, per_frame, extent(frame)) for first in columns[::per_frame].tolist()])
    found[:, columns] += frame.repeat(1, len(columns) // per_frame)
    return found


def with_columns(features: Tensor, behind: Tensor) -> Tensor:
    """[n, D + 9]: features [n, D] with ``behind`` int64 [3, n] in columns."""
    high, low = behind // _BASE, behind % _BASE
    digits = torch.stack([high // _BASE, high % _BASE, low], dim=1).flatten(0, 1)
    return torch.cat([features, digits.T.to(features.device, features.dtype)], dim=1)


def without_columns(made: Sequence[Tensor]) -> tuple[list[Tensor], Tensor]:
    """The features of every piece, and int64 [3, tokens of all] what :func:`with_columns` put beside them."""
    digits = torch.cat([one[:, -COLUMNS:] for one in made]).T.long().unflatten(0, (AXES, -1))
    highest, high, low = digits.unbind(1)
    return [one[:, :-COLUMNS] for one in made], (highest * _BASE + high) * _BASE + low
