"""Packing: in a ragged batch, what works token by token is computed for the real tokens alone.

Rows of a batch that keep different numbers of tokens are padded to the longest, because attention wants a rectangle.
The matrix products do not: the feed-forward part and the projections of attention see one token at a time. While a
prompt with enough padding runs, they are handed the real tokens, end to end, and what they return is put back into the
rectangle, zero in padding. Attention and the cache see what they always see. A prompt's own padding is left as it is
until the first token goes: a strategy that keeps everything changes no bit of the model.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tokentrim.engine.ability import Ability
from tokentrim.engine.seams.undo import Undo, hook
from tokentrim.engine.tokens.prompt import Prompt
from tokentrim.engine.tokens.stream import Stream

LEAST_PADDING = 1 / 16
"""Share of a batch that has to be padding: below it, picking tokens and putting them back costs what it saves."""


class Packing(Ability):
    """Packs the modules of decoder layers from a prompt's first cut on; its hooks are there only while it packs."""

    def __init__(self, layers: Sequence[nn.Module]) -> None:
        self._layers = layers
        self._undo = Undo()
        self._index: Tensor | None = None
        self._rectangle = (0, 0)
        self._last: tuple[Tensor, Tensor] | None = None

    def before_layer(self, layer: int, stream: Stream) -> None:
        """Pack from here on, where enough of ``stream`` is padding."""
        rows, length, real = stream.rows, stream.length, sum(stream.real)
        self._last = None
        if stream.valid is None or real > (1 - LEAST_PADDING) * rows * length:
            self._stop()
            return
        self._rectangle = (rows, length)
        self._index = _real_columns(stream)
        if not self._undo:
            for module in (module for layer in self._layers for module in _token_by_token(layer)):
                hook(module, self._pick, self._undo, before=True)
                hook(module, self._put_back, self._undo, before=False, first=True)

    def after_prompt(self, prompt: Prompt) -> None:
        """Take the hooks out."""
        self._stop()

    def _stop(self) -> None:
        self._undo.run()
        self._index = self._last = None

    def _pick(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Hand the module the real tokens, [1, real, D]."""
        whole = args[0] if args else next(iter(kwargs.values()), None)
        if self._index is None or not isinstance(whole, Tensor) or tuple(whole.shape[:-1]) != self._rectangle:
            return None
        if self._last is None or self._last[0] is not whole:  # three projections read the same hidden states
            index = self._index.to(whole.device)  # layers may lie on several devices
            self._last = whole, whole.flatten(0, 1).index_select(0, index).unsqueeze(0)
        packed = self._last[1]
        if args:
            return (packed, *args[1:]), kwargs
        return args, {**kwargs, next(iter(kwargs)): packed}

    def _put_back(self, module: nn.Module, args: Any, output: Any) -> Any:
        """The module's output as a rectangle, [B, T, D], zero in padding."""
        packed = output[0] if isinstance(output, tuple) else output
        if self._index is None or not isinstance(packed, Tensor) or tuple(packed.shape[:-1]) != (1, len(self._index)):
            return None
        rows, length = self._rectangle
        whole = packed.new_zeros(rows * length, packed.shape[-1])
        whole = whole.index_copy(0, self._index.to(packed.device), packed[0])
        whole = whole.view(rows, length, -1)
        return (whole, *output[1:]) if isinstance(output, tuple) else whole


def _token_by_token(layer: nn.Module) -> list[nn.Module]:
    """The modules of a decoder layer in which no token sees another: ``mlp``, and the linear maps of ``self_attn``.

    Not where experts are chosen: whoever records a router's logits expects one for every place of the rectangle.
    """
    parts = dict(layer.named_children())
    attention = parts.get("self_attn", nn.Identity())
    found: list[nn.Module] = [child for child in attention.children() if isinstance(child, nn.Linear)]
    dense = "mlp" in parts and "experts" not in dict(parts["mlp"].named_children())
    return [*found, parts["mlp"]] if dense else found


def _real_columns(stream: Stream) -> Tensor:
    """int64 [sum of real tokens]: their places in the rectangle laid end to end, row after row."""
    device, length = stream.vis_pos.device, stream.length
    if stream.flush:  # known on the host
        ends = [torch.arange((row + 1) * length - real, (row + 1) * length) for row, real in enumerate(stream.real)]
        return torch.cat(ends).to(device, non_blocking=True)
    valid = torch.ones(stream.rows, length, dtype=torch.bool) if stream.valid is None else stream.valid
    return torch.argsort((~valid).flatten().to(torch.uint8), stable=True)[: sum(stream.real)]
