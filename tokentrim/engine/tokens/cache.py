"""The engine's own cache layer: a physical length per layer, one logical length for positions and ``generate``.

An eviction compacts it in place, as ``eviction.py`` plans.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin, DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

from tokentrim.contracts.selection import Selection
from tokentrim.contracts.sites import Need
from tokentrim.engine.tokens.eviction import Moves
from tokentrim.engine.tokens.stream import Stream
from tokentrim.errors import UnsupportedError, complaint

if TYPE_CHECKING:
    from tokentrim.engine.tokens.prompt import Prompt

_RESERVE = 32
"""Columns kept free behind the stored ones, so that a decode step writes in place."""
_DEAD_SHARE = 1 / 2
"""Share of a buffer that columns given up may take before it is made anew. A smaller one copies more often."""


class TrimLayer(CacheLayerMixin):
    """Keys and values of one decoder layer: what the pruned prompt left, then everything generated.

    Attributes:
        prompt: the prompt that fills it.
        stream: the prompt's columns as this layer holds them (None until prefill is over).
        rows: attention float [B, H, N] of the last prompt token in this layer, alone and with what was accumulated
            since, where a strategy asked for it.
        prefill_counts: visual entries of each row at the end of prefill.
        ranked: whether the visual columns stand in front of all others, in the order in which they will leave.
        keeps_size: whether the buffers keep their size when entries leave.
        reordered: whether rows have changed places since prefill.
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
        self.rows: dict[Need, Any] = {}
        self.prefill_counts: tuple[int, ...] = ()
        self.shift: Tensor | None = None
        self.ranked = False
        self.keeps_size = False
        self.reordered = False
        self._unmasked: tuple[int, ...] | None = None
        self._settling: Callable[[tuple[int, ...]], None] | None = None
        self._buffers: tuple[Tensor, Tensor] | None = None
        self._saved = False
        self._start = 0
        self._length = 0

    def __deepcopy__(self, memo: dict[int, Any]) -> TrimLayer:
        """A layer that goes on by itself: keys and values of its own, and the prompt's account from here on."""
        self.settle()
        copied = object.__new__(type(self))
        memo[id(self)] = copied
        vars(copied).update(vars(self))
        copied.prompt = copy.deepcopy(self.prompt, memo)
        own = (self.keys, self.values, self._buffers, self.rows)  # of which some are written in place
        copied.keys, copied.values, copied._buffers, copied.rows = copy.deepcopy(own, memo)
        if self.index == 0:
            copied.prompt.kin.caches.add(copied)
        return copied

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Raise UnsupportedError: what is saved could not be continued."""
        raise UnsupportedError(
            complaint(
                "a trimmed KV cache",
                "stay in the context that filled it",
                "one to be saved",
                "copy it with copy.deepcopy, or save the prompt and run it again",
            )
        )

    @property
    def appended(self) -> int:
        """Columns stored behind the prompt's own."""
        return self._length - self.stream.length if self.stream is not None else 0

    @property
    def stored_bytes(self) -> int:
        """Bytes of the stored keys and values (reserve not counted)."""
        return sum(t.nbytes for t in (self.keys, self.values) if t is not None)

    @property
    def resident_bytes(self) -> int:
        """Bytes of memory that the layer holds: what is stored, the reserve behind it, and what was given up in front.

        The reserve is at most what the running ``generate`` can still append, the last at most the half.
        """
        return self.stored_bytes if self._buffers is None else sum(buffer.nbytes for buffer in self._buffers)

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
        new, length = key_states.shape[2], self._length + key_states.shape[2]
        if not self._takes(key_states, value_states):
            reserve = self._reserve(max(_RESERVE, length // 8), self.appended + new)
            self._move(length + reserve, new=(key_states, value_states))
        self._set_length(length)
        for stored, states in ((self.keys, key_states), (self.values, value_states)):
            stored[:, :, length - new :].copy_(states)  # type: ignore[index]
        self._saved = torch.is_grad_enabled()  # by the attention that follows
        return self.keys, self.values  # type: ignore[return-value]

    @property
    def writable(self) -> bool:
        """Whether there are buffers that may be written in place.

        Not those that autograd may have saved for a gradient, nor those of an inference mode that is over.
        """
        if self._buffers is None or self._saved:
            return False
        return not self._buffers[0].is_inference() or torch.is_inference_mode_enabled()

    def _takes(self, *new: Tensor) -> bool:
        """Whether ``new`` keys and values can be written behind the stored ones, and lose nothing there."""
        if not self.writable or self.columns_left < new[0].shape[2]:
            return False
        return all(_joined(buffer, one) == buffer.dtype for buffer, one in zip(self.buffers, new, strict=True))

    def _reserve(self, wanted: int, appended: int) -> int:
        """Columns to keep free behind so many appended ones: no more than the running ``generate`` can still fill.

        The last token of an answer is never fed back. Past the limit (another turn) it is what is ``wanted``. Under
        autograd none: the next step may not write into these buffers.
        """
        if torch.is_grad_enabled():
            return 0
        limit = self.prompt.new_tokens
        return wanted if limit is None or limit <= appended else min(wanted, limit - 1 - appended)

    def _move(self, capacity: int, *, keeps_size: bool = False, new: tuple[Tensor, Tensor] | None = None) -> None:
        """Copy what is stored into buffers of ``capacity`` columns, which ``new`` keys and values fit into as well.

        Where they keep their size, the columns behind are zeros: under a mask everything but NaN counts for nothing.
        """
        if self.keys is None or self.values is None:
            return
        keys, values = new or (self.keys, self.values)
        fresh = (_room_for(self.keys, capacity, keys), _room_for(self.values, capacity, values))
        for buffer, stored in zip(fresh, (self.keys, self.values), strict=True):
            buffer[:, :, : self._length] = stored
            if keeps_size:
                buffer[:, :, self._length :] = 0
        self._hold(fresh, 0, keeps_size)
        self._set_length(self._length)

    def _hold(self, buffers: tuple[Tensor, Tensor], start: int, keeps_size: bool) -> None:
        """Use fresh ``buffers`` from column ``start`` on."""
        self._buffers, self._start, self.keeps_size = buffers, start, keeps_size
        self._saved = torch.is_grad_enabled()  # by whoever reads them next

    # ------------------------------------------------------------------ buffers of fixed size

    @property
    def held_stream(self) -> Stream:
        """The stream, once prefill is over."""
        if self.stream is None:
            raise RuntimeError("a trimmed cache layer has no stream before prefill is over")  # an engine bug
        return self.stream

    @property
    def n_visual(self) -> tuple[int, ...]:
        """Visual entries of each row, those that are only masked not counted."""
        return self.held_stream.n_visual if self._unmasked is None else self._unmasked

    @property
    def masked(self) -> int:
        """Columns of the fullest row whose entries are masked, but still there."""
        return 0 if self._unmasked is None else max(self.held_stream.n_visual) - max(self._unmasked)

    def evict_later(self, counts: tuple[int, ...], settling: Callable[[tuple[int, ...]], None]) -> None:
        """All but ``counts`` visual entries are masked; ``settling`` evicts them when it is time."""
        self._unmasked, self._settling = counts, settling

    def settle(self) -> None:
        """Evict what is masked."""
        counts, settling = self._unmasked, self._settling
        self._unmasked = self._settling = None
        if counts is not None and settling is not None and counts != self.held_stream.n_visual:
            settling(counts)

    @property
    def buffers(self) -> tuple[Tensor, Tensor]:
        """Keys and values with all that is around them, [B, H_kv, capacity, head_dim]."""
        if self._buffers is None:
            raise RuntimeError("a trimmed cache layer has no buffers before its first resize")  # an engine bug
        return self._buffers

    @property
    def columns_left(self) -> int:
        """Columns that can still be written behind the stored ones."""
        return 0 if self._buffers is None else self._buffers[0].shape[2] - self._start - self._length

    @property
    def stored_columns(self) -> int:
        """Columns in use."""
        return self._length

    @property
    def given_up(self) -> int:
        """Columns in front of the stored ones."""
        return self._start

    def resize(self, capacity: int) -> None:
        """Move what is stored into buffers of ``capacity`` columns, which evictions then leave as they are."""
        self._move(capacity, keeps_size=True)

    def written(self, columns: int) -> None:
        """Note columns that were written into the buffers from outside."""
        self._set_length(self._length + columns)

    def places(self) -> list[int]:
        """In columns of the buffers: where the next entry goes, then each row's first."""
        if self.stream is None:
            return []
        return [self._start + self._length, *(self._start + self.stream.length - real for real in self.stream.real)]

    def _set_length(self, length: int) -> None:
        self._length = length
        if self._buffers is not None:
            self.keys, self.values = (buffer[:, :, self._start : self._start + length] for buffer in self._buffers)

    def rearrange(self, stream: Stream, order: Tensor) -> None:
        """Take the prompt's columns in ``order`` [B, T_new], then all that was appended, into buffers of their own."""
        if self.keys is None or self.values is None or self.stream is None:
            return
        tail = torch.arange(self.stream.length, self._length, device=order.device).expand(order.shape[0], -1)
        index = torch.cat([order, tail], dim=1)
        capacity = index.shape[1] + self._reserve(_RESERVE, self.appended)
        self._hold((_gathered(self.keys, index, capacity), _gathered(self.values, index, capacity)), 0, False)
        self.stream = stream
        self._set_length(index.shape[1])

    def evict(self, stream: Stream, moves: Moves) -> None:
        """Move what has to, and give up the columns in front; their memory is returned once they are the half."""
        if self._buffers is None or self.keys is None or self.values is None:
            raise RuntimeError("an eviction before the layer has buffers of its own")  # an engine bug, not user input
        if moves.source is not None and moves.target is not None:
            if not self.writable:
                self._move(self._length)
            rows = torch.arange(moves.source.shape[0], device=moves.source.device).unsqueeze(1)
            for stored in (self.keys, self.values):
                stored[rows, :, moves.target] = stored[rows, :, moves.source]
        self.stream = stream
        self._start += moves.shift
        self._set_length(self._length - moves.shift)
        if self._start > _DEAD_SHARE * self._buffers[0].shape[2] and not self.keeps_size:
            self._move(self._length + self._reserve(_RESERVE, self.appended))

    def overwrite(self, columns: Tensor, real: Tensor, keys: Tensor, values: Tensor) -> None:
        """Put other keys and values [B, H_kv, n, head_dim] in ``columns`` int64 [B, n], where ``real`` bool [B, n]."""
        if not self.writable:
            self._move(self._length)
        # Where a row has fewer, it writes its first one again; where it has none, what is there.
        slots = torch.arange(real.shape[1], device=real.device).masked_fill(~real, 0)
        columns, rows = columns.gather(1, slots), torch.arange(len(columns), device=columns.device).unsqueeze(1)
        for stored, new in ((self.keys, keys), (self.values, values)):
            before, after = stored[rows, :, columns], new.transpose(1, 2)[rows, slots]  # type: ignore[index]
            stored[rows, :, columns] = torch.where(real[:, :1, None, None], after, before).to(before.dtype)  # type: ignore[index]

    def keep_rows(self, selection: Selection) -> None:
        """Keep of :attr:`rows` what belongs to the chosen entries."""
        slots = selection.kept[:, : max(selection.counts, default=0)].clamp(min=0)
        self.rows = {
            need: row.gather(2, slots[:, None].expand(-1, row.shape[1], -1)) for need, row in self.rows.items()
        }

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
        self.keys = self.values = self._buffers = self.stream = None
        self.rows = {}
        self._start, self._length, self._saved = 0, 0, False
        self._unmasked = self._settling = None
        self.ranked = self.keeps_size = self.reordered = self.is_initialized = False

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
        self.settle()
        index, self.reordered = indices.to(self.device), True
        if self._buffers is not None:
            keys, values = (buffer.index_select(0, index) for buffer in self._buffers)
            self._hold((keys, values), self._start, self.keeps_size)
        elif self.keys is not None and self.values is not None:
            self.keys, self.values = self.keys.index_select(0, index), self.values.index_select(0, index)
        self.rows = {need: row.index_select(0, index) for need, row in self.rows.items()}
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


def _gathered(stored: Tensor, index: Tensor, capacity: int) -> Tensor:
    """Columns ``index`` [B, T] of ``stored`` [B, H, _, D], in a buffer of ``capacity`` columns."""
    buffer = _room_for(stored, capacity, stored)
    for row, columns in enumerate(index):
        buffer[row, :, : len(columns)] = stored[row].index_select(1, columns)
    return buffer


def _room_for(like: Tensor, capacity: int, new: Tensor) -> Tensor:
    return like.new_empty(like.shape[0], like.shape[1], capacity, like.shape[3], dtype=_joined(like, new))


def _joined(stored: Tensor, new: Tensor) -> torch.dtype:
    """The dtype of both together, where one turn runs in autocast and another does not."""
    return stored.dtype if stored.dtype == new.dtype else torch.promote_types(stored.dtype, new.dtype)


def plain(config: Any) -> DynamicCache:
    """An empty cache, as a model with the text config ``config`` makes it for itself."""
    return DynamicCache(config=config)


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
    prompt.kin.caches.add(cache.layers[0])


def mark_text(cache: Any, context: str) -> None:
    """Note on a cache (None: there is none) that text alone fills it, in ``context``; copies say so, too."""
    if cache is not None:
        cache.tokentrim_text = context


def is_text(cache: Any, context: str) -> bool:
    """Whether :func:`mark_text` noted this, and no prompt with pictures has taken the cache since."""
    return getattr(cache, "tokentrim_text", None) == context and not trimmed(cache)


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
