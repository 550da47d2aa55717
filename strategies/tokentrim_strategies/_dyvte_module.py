"""The routers of :class:`~tokentrim_strategies.dyvte.DyVTE`."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Routers(nn.Module):
    """One router for each boundary 1 .. L-1."""

    def __init__(self, n_layers: int, hidden_size: int, width: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.Sequential(
                nn.Linear(2 * hidden_size, width, bias=False), nn.GELU(), nn.Linear(width, 2, bias=False)
            )
            for _ in range(1, n_layers)
        )  # fmt: skip

    def forward(self, boundary: int, hidden: Tensor, valid: Tensor, behind: Tensor) -> Tensor:
        """float [B, 2]: logits of "stay" and "leave".

        Args:
            boundary: 1 .. L-1.
            hidden: [B, T, d], the text's hidden states at the boundary.
            valid: bool [B, T], False in padding; a row's last valid token is the last of its prompt.
            behind: bool [B, T], True for text behind the image.
        """
        return self.layers[boundary - 1](router_input(hidden, valid, behind))


def router_input(hidden: Tensor, valid: Tensor, behind: Tensor) -> Tensor:
    """float32 [B, 2d]: mean of the text behind the image but for the prompt's last token, beside the last token."""
    places = torch.arange(hidden.shape[1], device=hidden.device)
    last = (valid * places).amax(dim=1, keepdim=True)
    others = (behind & valid & (places != last)).unsqueeze(-1)
    hidden = hidden.float()
    total = hidden.masked_fill(~others, 0.0).sum(dim=1)
    end = hidden.gather(1, last.unsqueeze(-1).expand(-1, -1, hidden.shape[-1])).squeeze(1)
    return torch.cat([total / others.sum(dim=1).clamp(min=1), end], dim=1)
