"""Editing attention: neighbourhoods for visual queries, and heads that do without visual keys."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from tokentrim.attention import Kernel
from tokentrim.errors import StrategyError, UnsupportedError, complaint
from tokentrim.shape import ModelShape
from tokentrim.sites import Grid
from tokentrim.strategy import AttentionEdit, AttentionEditor
from tokentrim.stream import Stream

_KERNELS = ("sdpa", "eager")


@dataclass
class Editing:
    """The edits of one strategy on one model, applied inside attention.

    Attributes:
        edits: layer -> what is edited there; only layers in which something is.
    """

    edits: Mapping[int, AttentionEdit]
    _masks: dict[tuple[int, int], tuple[Stream, Tensor]] = field(default_factory=dict[Any, Any])

    @classmethod
    def of(cls, editor: AttentionEditor | None, shape: ModelShape, implementation: str) -> Editing | None:
        """The edits of ``editor``; None where it edits nothing.

        Raises:
            UnsupportedError: when the attention implementation takes no mask of ours.
            StrategyError: when an edit does not fit the model.
        """
        if editor is None:
            return None
        edits = {n: edit for n in range(shape.n_layers) if (edit := editor.edit(n, shape)) is not None and edit.acts}
        if not edits:
            return None
        if implementation not in _KERNELS:
            raise UnsupportedError(
                complaint("the attention implementation under a strategy that edits attention",
                          f"be one of {', '.join(_KERNELS)}", implementation,
                          "load the model with attn_implementation='sdpa'")
            )  # fmt: skip
        for layer, edit in edits.items():
            if edit.heads is not None and len(edit.heads) != shape.n_heads:
                raise StrategyError(
                    complaint(f"heads of layer {layer}", f"be {shape.n_heads}, as many as the model's",
                              len(edit.heads), "calibrate the heads on this very model")
                )  # fmt: skip
        return cls(edits)

    @property
    def acts_on_decode(self) -> bool:
        """Whether decode steps are edited: new tokens are text, so only their heads are."""
        return any(edit.heads is not None for edit in self.edits.values())

    def prefill(
        self,
        layer: int,
        kernel: Kernel,
        module: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Any,
        options: dict[str, Any],
        *,
        stream: Stream,
        grid: Callable[[], Grid],
    ) -> tuple[Tensor, Tensor | None]:
        """The layer's attention over a prompt, edited."""
        edit = self.edits[layer]
        if edit.radius is not None:
            mask = self._neighbours(edit.radius, stream, grid, query)
        output, weights = kernel(module, query, key, value, mask, **options)
        if edit.heads is None:
            return output, weights
        visual = stream.visual_mask()
        return self._silence(edit.heads, output, query, key, value, mask, options, keys=visual, queries=visual), None

    def decode(
        self,
        layer: int,
        kernel: Kernel,
        module: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Any,
        options: dict[str, Any],
        *,
        stream: Stream,
    ) -> tuple[Tensor, Tensor | None]:
        """The layer's attention of new tokens, edited."""
        output, weights = kernel(module, query, key, value, mask, **options)
        edit = self.edits.get(layer)
        if edit is None or edit.heads is None:
            return output, weights
        visual = stream.visual_mask(key.shape[2])
        return self._silence(edit.heads, output, query, key, value, mask, options, keys=visual, queries=None), None

    def _neighbours(self, radius: int, stream: Stream, grid: Callable[[], Grid], query: Tensor) -> Tensor:
        """[B, 1, T, T] for the kernel: causal, but a visual query sees of the visual keys its neighbours alone.

        Earlier and later ones alike, as in the released code; neighbours lie in one plane of one picture.
        """
        if (radius, id(stream)) in self._masks:
            return self._masks[radius, id(stream)][1]
        where, length = grid(), stream.length
        near = torch.ones(1, dtype=torch.bool, device=query.device)
        for part in (where.image, where.frame, where.plane):
            near = near & (part.unsqueeze(2) == part.unsqueeze(1))
        for part in (where.row, where.col):
            near = near & ((part.unsqueeze(2) - part.unsqueeze(1)).abs() <= radius)
        places = torch.arange(length + 1, device=query.device)
        seen = (places.unsqueeze(1) >= places).expand(stream.rows, -1, -1).clone()
        # A spare last column takes what padded slots write.
        pos = stream.vis_pos.masked_fill(~stream.vis_valid, length)
        rows = torch.arange(stream.rows, device=query.device)[:, None, None]
        seen[rows, pos.unsqueeze(2), pos.unsqueeze(1)] = near
        seen = seen[:, :length, :length]
        if stream.valid is not None:
            # Padding sees itself, so that no row of weights is empty.
            seen = (seen & stream.valid.unsqueeze(1)) | torch.eye(length, dtype=torch.bool, device=query.device)
        mask = seen.unsqueeze(1)
        additive = torch.zeros(mask.shape, dtype=query.dtype, device=query.device)
        mask = additive.masked_fill(~mask, torch.finfo(query.dtype).min)
        self._masks = {(radius, id(stream)): (stream, mask)}  # one stream at a time: layers come in order
        return mask

    @staticmethod
    def _silence(
        heads: tuple[bool, ...],
        output: Tensor,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Any,
        options: Mapping[str, Any],
        *,
        keys: Tensor,
        queries: Tensor | None,
    ) -> Tensor:
        """``output`` [B, T, H, D] with the inactive heads recomputed.

        Their weights on visual keys count nothing, the others are not rescaled: as if these keys' values were zero.
        What they add to visual tokens (``queries``) is nothing at all.
        """
        off = torch.tensor([head for head, on in enumerate(heads) if not on], device=query.device)
        group = query.shape[1] // key.shape[1]
        silent = value.index_select(1, off // group).masked_fill(keys[:, None, :, None], 0.0)
        mixed = F.scaled_dot_product_attention(
            query.index_select(1, off),
            key.index_select(1, off // group),
            silent,
            attn_mask=None if mask is None else mask[..., : key.shape[2]],
            is_causal=mask is None and query.shape[2] > 1,
            scale=options.get("scaling"),
        ).transpose(1, 2)
        if queries is not None:
            mixed = mixed.masked_fill(queries[:, :, None, None], 0.0)
        return output.index_copy(2, off, mixed.to(output.dtype))
