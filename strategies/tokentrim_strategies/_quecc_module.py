"""The trained module of :class:`~tokentrim_strategies.quecc.QueCC`."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Compressor(nn.Module):
    """The module: d = width of the language model, K = kernel^2 places of a window."""

    def __init__(self, width: int, kernel: int, heads: int) -> None:
        super().__init__()
        if kernel < 1 or heads < 1 or width % heads:
            raise ValueError(f"kernel and heads must be at least 1, and heads divide {width}; got {kernel}, {heads}")
        self.kernel, self.heads = kernel, heads
        self.question, self.query, self.key, self.value = (Mapped(width) for _ in range(4))
        self.depthwise = nn.Parameter(torch.full((kernel * kernel, width), 1.0 / (kernel * kernel)))
        self.bias = nn.Parameter(torch.zeros(width))
        self.attend = nn.ModuleDict({name: nn.Linear(width, width) for name in ("q", "k", "v", "out")})
        for linear in self.attend.values():
            nn.init.eye_(linear.weight)  # type: ignore[arg-type]
            nn.init.zeros_(linear.bias)  # type: ignore[arg-type]
        self.project = _mlp(width)

    def forward(self, features: Tensor, members: Tensor, text: Tensor, real: Tensor) -> Tensor:
        """float32 [B, M, d]: one token per window; zeros for windows without a token.

        Args:
            features: [B, N, d], the visual tokens.
            members: int64 [B, M, K], the token at each place of each window, -1 for none.
            text: [B, T, d], input embeddings of the text.
            real: bool [B, T], False in padding.
        """
        features, text = features.float(), text.float()
        there = members >= 0
        batch = torch.arange(len(features), device=features.device)[:, None, None]
        places = members.clamp(min=0)

        def windows(tokens: Tensor) -> Tensor:
            return tokens[batch, places].masked_fill(~there.unsqueeze(-1), 0.0)  # [B, M, K, d]

        words = self.question.added(text).masked_fill(~real.unsqueeze(-1), 0.0)
        asked = self.question.norm(words.sum(dim=1) / real.sum(dim=1, keepdim=True).clamp(min=1))
        mixed = self.query(features + asked.unsqueeze(1))
        query = (windows(mixed) * self.depthwise).sum(dim=2) + self.bias
        heads = (self.heads, features.shape[-1] // self.heads)
        q = self.attend["q"](query).unflatten(-1, heads)
        k = windows(self.attend["k"](self.key(features))).unflatten(-1, heads)
        v = windows(self.attend["v"](self.value(features))).unflatten(-1, heads)
        score = torch.einsum("bmhd,bmkhd->bmhk", q, k) / heads[1] ** 0.5
        empty = ~there.any(dim=-1)
        seen = there | empty.unsqueeze(-1)  # a window without a token attends anywhere, and counts for nothing
        weight = score.masked_fill(~seen.unsqueeze(2), float("-inf")).softmax(dim=-1)
        taken = self.attend["out"](torch.einsum("bmhk,bmkhd->bmhd", weight, v).flatten(-2))
        mean = torch.einsum("bmk,bmkd->bmd", weight.mean(dim=2), windows(features))
        return (mean + self.project(taken)).masked_fill(empty.unsqueeze(-1), 0.0)


class Mapped(nn.Module):
    """F(x) = LN(x + MLP(x))."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mlp, self.norm = _mlp(width), nn.LayerNorm(width)

    def added(self, x: Tensor) -> Tensor:
        """x + MLP(x)."""
        return x + self.mlp(x)

    def forward(self, x: Tensor) -> Tensor:
        """[..., d] of [..., d]."""
        return self.norm(self.added(x))


def _mlp(width: int) -> nn.Sequential:
    """Linear, GELU, Linear; 0 until it is trained."""
    last = nn.Linear(width, width)
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    return nn.Sequential(nn.Linear(width, width), nn.GELU(), last)
