"""Kernel floor: what a prefill costs in the model's own modules alone, at the token counts of a strategy."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tokentrim.contracts.adapter import Layout
from tokentrim.engine.seams.attention import implementation_of
from tokentrim.engine.seams.masks import causal_mask
from tokentrim.runs.stopwatch import timed


@dataclass(frozen=True)
class _Width:
    """What a layer of some token count is handed besides hidden states; position embeddings by their kind."""

    n: int
    position_embeddings: Mapping[str, tuple[Tensor, Tensor]]
    position_ids: Tensor
    mask: Any


class KernelFloor:
    """The modules that a prefill cannot do without, and nothing between them.

    One run encodes the pictures, takes random hidden states through the decoder layers, cut to each layer's count
    before it (a view, no gather), with causal attention of the model's own implementation and a plain
    ``DynamicCache``, and ends with the final norm and the head for one position. Position embeddings and masks are
    made beforehand. What a pruned ``generate`` takes beyond this is selection, gathering, bookkeeping, and the part
    of ``generate`` itself; the untouched model's own distance shows the last alone.
    """

    def __init__(
        self, model: Any, layout: Layout, inputs: Mapping[str, Tensor], layer_totals: Sequence[int], *, seed: int = 0
    ) -> None:
        """Prepare the runs.

        Args:
            model: the whole model; its final norm is left out where it is not one part of the language model.
            layout: where its modules are.
            inputs: of ``generate``: ``input_ids`` [B, T], and whatever its encoder takes of the pictures.
            layer_totals: [L] tokens, visual and text, that each layer processes; never rising.
            seed: of the hidden states.
        """
        entry: Any = layout.entry
        self._layout, self._device = layout, model.device
        self._encode, self._head = entry.get_image_features, model.get_output_embeddings()
        self._norm = layout.final_norm or nn.Identity()
        takes = inspect.signature(self._encode).parameters
        self._pictures = {name: value for name, value in inputs.items() if name in takes}
        shape = (len(inputs["input_ids"]), layer_totals[0], layout.shape.hidden_size)
        noise = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
        self._hidden = noise.to(model.device, model.dtype)
        widths = {n: self._width(n) for n in set(layer_totals)}
        self._widths = [widths[n] for n in layer_totals]

    def _width(self, n: int) -> _Width:
        layout, hidden = self._layout, self._hidden[:, :n]
        positions = torch.arange(n, device=hidden.device).unsqueeze(0)
        mask = causal_mask(
            implementation_of(layout.text_config),
            layout.text_config,
            batch=len(hidden),
            queries=n,
            keys=n,
            valid=None,
            dtype=hidden.dtype,
            device=hidden.device,
        )
        turned = positions.expand(3, len(hidden), n) if layout.mrope else positions
        kinds = {layout.rotary_kind(layer): layer for layer in range(len(layout.layers))}
        embeddings = {kind: layout.position_embeddings(layer, hidden, turned) for kind, layer in kinds.items()}
        return _Width(n, embeddings, positions, mask)

    def run(self) -> Tensor:
        """One prefill; returns the logits [B, 1, V]."""
        from transformers import DynamicCache

        self._encode(**self._pictures)
        cache = DynamicCache(config=self._layout.text_config)
        hidden = self._hidden
        for number, (layer, width) in enumerate(zip(self._layout.layers, self._widths, strict=True)):
            hidden = layer(
                hidden[:, : width.n],
                attention_mask=width.mask,
                position_embeddings=width.position_embeddings[self._layout.rotary_kind(number)],
                position_ids=width.position_ids,
                past_key_values=cache,
                use_cache=True,
            )
        return self._head(self._norm(hidden[:, -1:]))

    def seconds(self) -> float:
        """Seconds of one run."""
        return timed(self._device, self.run)
