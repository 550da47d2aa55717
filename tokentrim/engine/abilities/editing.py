"""Editing attention: neighbourhoods for visual queries, and heads that do without visual keys."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from tokentrim.contracts.extras import AttentionEdit, AttentionEditor
from tokentrim.counting.shape import ModelShape
from tokentrim.engine.abilities.bands import Bands
from tokentrim.engine.ability import Ability
from tokentrim.engine.seams.attention import Kernel
from tokentrim.engine.tokens.prompt import Prompt
from tokentrim.engine.tokens.stream import Stream
from tokentrim.errors import StrategyError, UnsupportedError, complaint

_KERNELS = ("sdpa", "eager")


@dataclass
class Editing(Ability):
    """The edits of one strategy on one model, applied inside attention.

    Attributes:
        edits: layer -> what is edited there; only layers in which something is.
    """

    edits: Mapping[int, AttentionEdit]
    edits_attention: ClassVar[bool] = True
    _stream: Stream | None = None
    _bands: dict[tuple[int, torch.device], Bands] = field(default_factory=dict[tuple[int, torch.device], Bands])

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
    def edits_steps(self) -> bool:
        """Whether decode steps are edited: new tokens are text, so only their heads are."""
        return any(edit.heads is not None or edit.blind for edit in self.edits.values())

    def around_attention(self, layer: int, kernel: Kernel, stream: Stream, prompt: Prompt) -> Kernel:
        """The layer's attention, edited; as it is where nothing is, or no visual token is left."""
        edit = self.edits.get(layer)
        if edit is None or not any(stream.n_visual):
            return kernel
        return functools.partial(self._edited, edit, kernel, stream, prompt)

    def _edited(
        self,
        edit: AttentionEdit,
        kernel: Kernel,
        stream: Stream,
        prompt: Prompt,
        module: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Any,
        **options: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """Attention of a prompt, or of new tokens behind one."""
        begins = key.shape[2] == stream.length
        bands = self._bands_of(edit.radius, stream, prompt) if begins and edit.radius is not None else None
        visual = stream.visual_mask(key.shape[2]) if edit.blind or edit.heads is not None else None
        if edit.blind and visual is not None:
            value = _silent(value, visual)
        if bands is not None:
            output, weights = bands.attend(query, key, value, options.get("scaling")), None
        else:
            output, weights = kernel(module, query, key, value, mask, **options)
        if visual is None or edit.heads is None:
            return output, weights if visual is None else None
        inactive = _Inactive.of(edit.heads, query, key, value, visual)
        if bands is not None:
            mixed = bands.attend_others(inactive.query, inactive.key, inactive.value, options.get("scaling"))
        else:
            mixed = inactive.attend(mask, options).masked_fill(visual[:, -query.shape[2] :, None, None], 0.0)
        return inactive.placed(output, mixed), None

    def after_prompt(self, prompt: Prompt) -> None:
        """Note the pairs of visual tokens that each layer computed, where not all of them are.

        All visual tokens of the prompt reach the layers that are edited.
        """
        if self._stream is prompt.start and self._bands:
            pairs = {radius: bands.pairs for (radius, _), bands in self._bands.items()}
            found = {n: pairs[edit.radius] for n, edit in self.edits.items() if edit.radius is not None}
            counts = enumerate(prompt.layer_counts)
            prompt.visual_pairs = [found.get(layer, tuple(n * n for n in rows)) for layer, rows in counts]

    def _bands_of(self, radius: int, stream: Stream, prompt: Prompt) -> Bands:
        """Who sees whom in this prompt; a visual query sees earlier and later neighbours alike, as in released code."""
        home, where = stream.on(prompt.start.device), (radius, stream.device)
        if self._stream is not home:
            self._stream, self._bands = home, {}
        if where not in self._bands:
            self._bands[where] = Bands.of(radius, stream, prompt.grid(stream.vis_ids.clamp(min=0), stream.vis_valid))
        return self._bands[where]


def _silent(value: Tensor, visual: Tensor) -> Tensor:
    """``value`` [B, H, T, D] with zeros at ``visual`` keys: leaves out what they would add, and rescales nothing."""
    return value.masked_fill(visual[:, None, :, None], 0.0)


@dataclass(frozen=True)
class _Inactive:
    """The heads whose weights on visual keys count nothing; the others are not rescaled.

    Attributes:
        heads: int64 [n], which they are.
        query: [B, n, T_q, D].
        key: [B, n, T, D].
        value: [B, n, T, D], silent at visual keys.
    """

    heads: Tensor
    query: Tensor
    key: Tensor
    value: Tensor

    @classmethod
    def of(cls, active: tuple[bool, ...], query: Tensor, key: Tensor, value: Tensor, visual: Tensor) -> _Inactive:
        """The heads that are not ``active``; ``visual`` bool [B, T] marks the visual keys."""
        off = torch.tensor([head for head, on in enumerate(active) if not on], device=query.device)
        source = off // (query.shape[1] // key.shape[1])
        silent = _silent(value.index_select(1, source), visual)
        return cls(off, query.index_select(1, off), key.index_select(1, source), silent)

    def attend(self, mask: Any, options: Mapping[str, Any]) -> Tensor:
        """[B, T_q, n, D]."""
        return F.scaled_dot_product_attention(
            self.query,
            self.key,
            self.value,
            attn_mask=None if mask is None else mask[..., : self.key.shape[2]],
            is_causal=mask is None and self.query.shape[2] > 1,
            scale=options.get("scaling"),
        ).transpose(1, 2)

    def placed(self, output: Tensor, mixed: Tensor) -> Tensor:
        """``output`` [B, T_q, H, D] with ``mixed`` in the place of these heads."""
        return output.index_copy(2, self.heads, mixed.to(output.dtype))
