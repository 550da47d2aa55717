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
COLUMNS: Final = 2 * AXES
"""How many stand behind the features: a high and a low digit for each axis."""


def laid_out(length: int, pictures: Iterable[tuple[int, int, tuple[int, int, int]]]) -> Tensor:
    """int64 [3, length]: positions of a prompt, every picture's tokens where the picture begins.

    Args:
        length: tokens of the prompt, without what was pruned.
        pictures: in order: column of its first token, tokens that stay, and the positions that it takes up in time,
            height and width in the unpruned model.
    """
    line, column, position = torch.empty(length, dtype=torch.int64), 0, 0
    for first, stay, extent in pictures:
        text = first - column
        line[column:first] = torch.arange(position, position + text)
        line[first : first + stay] = position + text
        column, position = first + stay, position + text + max(extent)
    line[column:] = torch.arange(position, position + length - column)
    return line.expand(AXES, -1).clone()


def grid(frames: int, rows: int, cols: int, per_frame: float = 1.0) -> Tensor:
    """int64 [3, tokens]: how far behind its beginning each token of a picture is, frame after frame in raster order.

    Args:
        frames: temporal patches.
        rows: of tokens.
        cols: of tokens.
        per_frame: positions from one frame to the next.
    """
    time = (torch.arange(frames) * per_frame).long()
    axes = torch.meshgrid(time, torch.arange(rows), torch.arange(cols), indexing="ij")
    return torch.stack([axis.flatten() for axis in axes])


def with_columns(features: Tensor, behind: Tensor) -> Tensor:
    """[n, D + 6]: features [n, D] with ``behind`` int64 [3, n] in columns."""
    digits = torch.stack([behind // _BASE, behind % _BASE], dim=1).flatten(0, 1)  # high and low of each axis
    return torch.cat([features, digits.T.to(features.device, features.dtype)], dim=1)


def without_columns(made: Sequence[Tensor]) -> tuple[list[Tensor], Tensor]:
    """The features of every piece, and int64 [3, tokens of all] what :func:`with_columns` put beside them."""
    digits = torch.cat([one[:, -COLUMNS:] for one in made]).T.long().unflatten(0, (AXES, 2))
    return [one[:, :-COLUMNS] for one in made], digits[:, 0] * _BASE + digits[:, 1]
