"""The question of a prompt, as methods that choose before the language model read it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tokentrim import LayerSite

if TYPE_CHECKING:
    from torch import Tensor


def question(site: LayerSite) -> Tensor:
    """bool [B, T]: the text tokens behind a row's last visual token; all of its text where none is behind it."""
    import torch

    _, real, behind = site.text_ids
    return torch.where(behind.any(dim=1, keepdim=True), behind, real)
