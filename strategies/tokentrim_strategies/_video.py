"""What methods for video share: which token of another frame lies in the same place, and where scenes end."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import TYPE_CHECKING

from tokentrim import Grid, LayerSite

if TYPE_CHECKING:
    from torch import Tensor

_PLACE_BITS, FRAME_BITS = 14, 20  # of the key: rows and columns of a plane, frames of a video


def place_keys(grid: Grid, placed: Tensor) -> Tensor:
    """int64 [B, N]: sorts tokens by picture and place in it, and those of one place by frame.

    The same place one frame later has the key plus 1. Where not ``placed``, keys are negative.
    """
    keys = grid.image * 2 + grid.plane
    for part, bits in ((grid.row, _PLACE_BITS), (grid.col, _PLACE_BITS), (grid.frame, FRAME_BITS)):
        keys = (keys << bits) + part
    return keys.masked_fill(~placed, -1)


def like_earlier(site: LayerSite, back: Tensor | int) -> Tensor:
    """float32 [B, N]: cosine of each token's features with those at its place ``back`` frames before; -2 without."""
    import torch

    from tokentrim import rows_at, unit

    keys = place_keys(site.grid, site.valid & (site.grid.row >= 0))
    ordered, order = keys.sort(dim=1)
    wanted = keys - back
    found = torch.searchsorted(ordered, wanted).clamp(max=keys.shape[1] - 1)
    # Before the first place of all lies the key of what is not placed.
    there = (ordered.gather(1, found) == wanted) & (wanted >= 0)
    towards = unit(site.features)
    return (towards * rows_at(towards, order.gather(1, found))).sum(dim=2).masked_fill(~there, -2.0)


def scenes_of(labels: Sequence[int]) -> tuple[int, ...]:
    """Frames in each scene, of the labels of all frames."""
    runs = [(label, len(list(run))) for label, run in groupby(labels)]
    longest = {label: max(n for other, n in runs if other == label) for label, _ in runs}
    found: list[int | None] = []
    for label, n in runs:
        found += [label if n == longest[label] > 1 else None] * n
    place = 0
    while place < len(found):
        end = place + next((i for i, label in enumerate(found[place:]) if label is not None), len(found) - place)
        if end > place:
            left, right = found[:place][::-1], found[end:]
            beside = [(side[0], len(list(next(groupby(side))[1]))) for side in (left, right) if side]
            # The longer one, the left one of equals; all is one scene where no run has stayed.
            label = max(beside, key=lambda run: run[1])[0] if beside else 0
            found[place:end] = [label] * (end - place)
        place = end + 1
    return tuple(len(list(run)) for _, run in groupby(found))
