"""What a patch shows, in the words of the language model: what alignment aims at, and what stands for a picture.

The language model learns to look things up on sums of words first. There they are exact and cost no tower, and the
projector need not follow a language model that does not yet read what it is shown.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from tokentrim.testbed.busy.vocabulary import IDS
from tokentrim.testbed.training.busy.batch import Targets
from tokentrim.testbed.training.busy.model import AREAS, NO_PRINT, PRINT
from tokentrim.testbed.training.packing import IGNORE
from tokentrim.testbed.vocabulary import COLORS, COLUMNS, ROWS


class _Told(NamedTuple):
    """One kind of word: its words, which of them is right at each patch, and where there is one."""

    words: tuple[str, ...]
    right: Tensor
    judged: Tensor


def _told(targets: Targets) -> Iterator[_Told]:
    printed = targets.print != NO_PRINT
    shown = printed | (targets.area != IGNORE)
    yield _Told(PRINT, targets.print, printed)
    yield _Told(COLORS, targets.color, targets.color != IGNORE)
    yield _Told(AREAS, targets.area, targets.area != IGNORE)
    yield _Told(COLORS, targets.area_color, targets.area_color != IGNORE)
    yield _Told(ROWS, targets.row, shown)
    yield _Told(COLUMNS, targets.column, shown)


def _ids(words: tuple[str, ...]) -> Tensor:
    return torch.tensor([IDS[word] for word in words])


def spelled_out(words: Tensor, targets: Targets) -> Tensor:
    """Visual tokens [batch, tokens, width] that are the sums of their words, [vocabulary, width]."""
    total = torch.zeros(*targets.print.shape, words.shape[1])
    for told in _told(targets):
        right = _ids(told.words)[told.right.clamp(0, len(told.words) - 1)]
        total = total + words[right] * told.judged[..., None]
    return total


def alignment_loss(projected: Tensor, words: Tensor, targets: Targets) -> Tensor:
    """How far projected patches [batch, tokens, width] are from the sums of their words, 1 for all that say nothing."""
    told = (targets.print != NO_PRINT) | (targets.area != IGNORE)
    right = spelled_out(words.detach(), targets)[told]
    return (projected[told] - right).pow(2).mean() / right.pow(2).mean()
