"""Scores that several strategies share, as pure functions of a site."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tokentrim import LayerSite, Spatial

if TYPE_CHECKING:
    from torch import Tensor


def text_row_mean(site: LayerSite) -> Tensor:
    """float [B, N]: attention in layer b-1 to each visual token, mean over heads and over the prompt's text tokens."""
    rows, valid = site.text_rows
    rows = rows.mean(dim=1).masked_fill(~valid.unsqueeze(-1), 0.0)  # [B, T, N]
    return rows.sum(dim=1) / valid.sum(dim=1, keepdim=True).clamp(min=1)


def losing_rows(strategy: Spatial, site: LayerSite, n_visual: tuple[int, ...]) -> set[int]:
    """Rows that lose tokens at a boundary, and so would have been asked about there without the rest of the batch too.

    n_visual: visual tokens of each row before any pruning.
    """
    before = zip(n_visual, site.n_visual, strict=True)
    return {
        row
        for row, (n, current) in enumerate(before)
        if n and strategy.schedule(site.shape, n).count_at(site.boundary) < current
    }
