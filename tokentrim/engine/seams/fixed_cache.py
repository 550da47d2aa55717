"""A cache whose buffers keep their size, as compiled steps see it."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin


class FixedLayer(CacheLayerMixin):
    """One layer's buffers of fixed size, as compiled steps see them."""

    is_compileable = True
    is_sliding = False

    def __init__(self, keys: Tensor, values: Tensor, slot: Tensor) -> None:
        super().__init__()
        self.keys, self.values, self.slot = keys, values, slot
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Write the new entry into its column; attention sees the whole buffer, under a mask."""
        self.keys.index_copy_(2, self.slot, key_states)  # type: ignore[union-attr]
        self.values.index_copy_(2, self.slot, value_states)  # type: ignore[union-attr]
        return self.keys, self.values  # type: ignore[return-value]

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Nothing to do: the buffers are there."""

    def get_seq_length(self) -> int:
        """Columns of the buffer: where the sequence stands is given by position ids."""
        return self.keys.shape[2]  # type: ignore[union-attr]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """All columns."""
        return self.keys.shape[2], 0  # type: ignore[union-attr]

    def get_max_length(self) -> int:
        """Columns of the buffer."""
        return self.keys.shape[2]  # type: ignore[union-attr]


def fixed(layers: list[FixedLayer]) -> Cache:
    """A cache of buffers of fixed size."""
    return Cache(layers=list[Any](layers))
