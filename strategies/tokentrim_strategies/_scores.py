"""Scores that several strategies share, as pure functions of a site."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tokentrim import LayerSite

if TYPE_CHECKING:
    from torch import Tensor


def text_row_mean(site: LayerSite) -> Tensor:
    """float [B, N]: attention in layer b-1 to each visual token, mean over heads and over the prompt's text tokens."""
    rows, valid = site.text_rows
    rows = rows.mean(dim=1).masked_fill(~valid.unsqueeze(-1), 0.0)  # [B, T, N]
    return rows.sum(dim=1) / valid.sum(dim=1, keepdim=True).clamp(min=1)
