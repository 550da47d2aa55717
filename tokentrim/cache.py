"""The engine's own cache layer: a physical length per layer, one logical length for positions and ``generate``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin, DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

from tokentrim.errors import UnsupportedError, complaint
from tokentrim.stream import Stream

if TYPE_CHECKING:
    from tokentrim.prompt import Prompt

_RESERVE = 32
"""Columns kept free behind the stored ones, so that a decode step writes in place."""


class TrimLayer(CacheLayerMixin):
    """Keys and values of one decoder layer: what the pruned prompt left, then everything generated.

    Attributes:
        prompt: the prompt that fills it.
        stream: the prompt's columns as this layer holds them (None until prefill is over).
        prompt_row: float [B, H, N], attention of the last prompt token in this layer, where a strategy asked for it.
        prefill_counts: visual entries of each row at the end of prefill.
        shift: int64 [B], what the renumber policy takes off a new token's position in this layer; else None.
        keys: view [B, H_kv, physical, head_dim] of the stored keys; ``values`` likewise.
    """

    is_compileable = False
    is_croppable = True
    is_sliding = False

    def __init__(self, prompt: Prompt, index: int) -> None:
        super().__init__()
        self.prompt = prompt
        self.index = index
        self.stream: Stream | None = None
        self.prompt_row: Tensor | None = None
        self.prefill_counts: tuple[int, ...] = ()
        self.shift: Tensor | None = None
        self._buffers: tuple[Tensor, Tensor] | None = None
        self._length = 0

    @property
    def appended(self) -> int:
        """Columns stored behind the prompt's own."""
        return self._length - self.stream.length if self.stream is not None else 0

    @property
    def stored_bytes(self) -> int:
        """Bytes of the stored keys and values (reserve not counted)."""
        if self.keys is None or self.values is None:
            return 0
        return sum(t.numel() * t.element_size() for t in (self.keys, self.values))

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Remember dtype and device; buffers are made by the first update."""
        self.dtype, self.device = key_states.dtype, key_states.device
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Append and return all stored keys and values.

        Raises:
            UnsupportedError: when the context that filled this cache has been left.
        """
        self.prompt.require_active()
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        if self._length == 0:
            # The prompt's tensors are kept as they are: no copy, no reserve while activations are at their peak, the
            # same memory layout as without tokentrim, and nothing written in place under autograd. The first decode
            # step moves them into buffers.
            self._length, self.keys, self.values = key_states.shape[2], key_states, value_states
            return key_states, value_states
        start, end = self._length, self._length + key_states.shape[2]
        if self._buffers is None or end > self._buffers[0].shape[2]:
            self._grow(key_states, value_states, end)
        if self._buffers is not None:
            self._buffers[0][:, :, start:end].copy_(key_states)
            self._buffers[1][:, :, start:end].copy_(value_states)
        self._set_length(end)
        return self.keys, self.values  # type: ignore[return-value]

    def _grow(self, key: Tensor, value: Tensor, length: int) -> None:
        capacity = length + max(_RESERVE, length // 8)
        old = (self.keys, self.values)
        fresh = tuple(t.new_empty(t.shape[0], t.shape[1], capacity, t.shape[3]) for t in (key, value))
        for buffer, stored in zip(fresh, old, strict=True):
            if stored is not None and self._length:
                buffer[:, :, : self._length].copy_(stored)
        self._buffers = (fresh[0], fresh[1])

    def _set_length(self, length: int) -> None:
        self._length = length
        if self._buffers is not None:
            self.keys, self.values = (buffer[:, :, :length] for buffer in self._buffers)

    def evict(self, stream: Stream, order: Tensor) -> None:
        """Keep columns ``order`` [B, T_new] of the prompt's part and all that was appended; memory is given back."""
        if self.keys is None or self.values is None or self.stream is None:
            return
        tail = torch.arange(self.stream.length, self._length, device=order.device).expand(order.shape[0], -1)
        index = torch.cat([order, tail], dim=1)[:, None, :, None]
        kept: list[Tensor] = []
        length = index.shape[2]
        for stored in (self.keys, self.values):
            buffer = stored.new_empty(stored.shape[0], stored.shape[1], length + _RESERVE, stored.shape[3])
            where = index.expand(-1, stored.shape[1], -1, stored.shape[3])
            torch.gather(stored, 2, where, out=buffer[:, :, :length])
            kept.append(buffer)
        self._buffers = (kept[0], kept[1])
        self.stream = stream
        self._set_length(length)

    def get_seq_length(self) -> int:
        """Logical length: the length without pruning, from which positions follow."""
        return self.prompt.length + self.appended if self.stream is not None else 0

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """(columns that attention will see, offset 0): the physical length."""
        return self._length + query_length, 0

    def get_max_length(self) -> int:
        """-1: no maximum."""
        return -1

    def reset(self) -> None:
        """Forget everything; the next update starts a prompt."""
        self.keys = self.values = self._buffers = self.stream = self.prompt_row = None
        self._length = 0
        self.is_initialized = False

    def crop(self, tokens_to_remove: int) -> None:
        """Remove generated tokens from the end (a negative number, or the logical length to keep).

        Raises:
            UnsupportedError: when the crop would reach into the pruned prompt, or temporal eviction has acted.
        """
        remove = -tokens_to_remove if tokens_to_remove <= 0 else max(0, self.get_seq_length() - tokens_to_remove)
        if remove == 0 or not self.is_initialized:
            return
        if remove > self.appended or self.prompt.temporal is not None:
            raise UnsupportedError(
                complaint(
                    "crop of a trimmed cache",
                    f"remove at most the {self.appended} generated tokens, and only without a temporal strategy",
                    remove,
                    "start the prompt again instead of rolling the cache back",
                )
            )
        self._set_length(self._length - remove)
        self.prompt.cropped(self.appended)

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Rows ``beam_idx`` of this layer (beam search)."""
        self.batch_select_indices(beam_idx)

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep the rows ``indices``, in that order."""
        if self._length == 0 or self.stream is None:
            return
        index = indices.to(self.device)
        if self._buffers is not None:
            self._buffers = (self._buffers[0].index_select(0, index), self._buffers[1].index_select(0, index))
        elif self.keys is not None and self.values is not None:
            self.keys, self.values = self.keys.index_select(0, index), self.values.index_select(0, index)
        if self.prompt_row is not None:
            self.prompt_row = self.prompt_row.index_select(0, index)
        if len(set(self.prefill_counts)) > 1:
            self.prefill_counts = tuple(self.prefill_counts[i] for i in indices.tolist())
        else:
            self.prefill_counts = self.prefill_counts[:1] * len(indices)
        if self.shift is not None:
            self.shift = self.prompt.reordered_shift(self.shift, indices)
        self.stream = self.prompt.reordered(self.stream, indices)
        self.prompt.note_rows(self.index, self.stream)
        self._set_length(self._length)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat every row ``repeats`` times."""
        if self.stream is not None:
            rows = self.prompt.repeat_index(self.stream.rows, repeats, self.device)
            self.batch_select_indices(rows)


def trimmed(cache: Any) -> bool:
    """Whether ``cache`` holds TrimLayers."""
    return isinstance(cache, Cache) and len(cache.layers) > 0 and isinstance(cache.layers[0], TrimLayer)


def install(cache: Any, prompt: Prompt, n_layers: int) -> None:
    """Replace the (empty) layers of ``cache`` by TrimLayers, in place, so that the caller's object stays the one used.

    Raises:
        UnsupportedError: for caches that are static, quantised, offloaded or of another kind.
    """
    require_plain(cache)
    cache.layers[:] = [TrimLayer(prompt, index) for index in range(n_layers)]


def require_plain(cache: Any) -> None:
    """Refuse a cache whose layers cannot be replaced.

    Raises:
        UnsupportedError: for caches that are static, quantised, offloaded or of another kind.
    """
    layers = getattr(cache, "layers", [])
    plain = isinstance(cache, DynamicCache) and not getattr(cache, "offloading", False)
    if not plain or any(type(layer) not in (DynamicLayer, DynamicSlidingWindowLayer, TrimLayer) for layer in layers):
        offloads = "an offloading " if getattr(cache, "offloading", False) else ""
        refuse(offloads + type(cache).__name__)


def refuse(kind: str) -> None:
    """Raise UnsupportedError for a kind of cache, by its name."""
    raise UnsupportedError(
        complaint(
            "the KV cache",
            "be a plain DynamicCache while a model is pruned",
            kind,
            "drop cache_implementation / past_key_values and let generate() make its default cache",
        )
    )
