"""ModelShape: the numbers of a model that budgets, plans and accounting need, read from its config alone."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class VisionShape:
    """The vision tower as arithmetic sees it.

    Attributes:
        n_layers: encoder blocks.
        hidden_size: width of the tower.
        intermediate_size: width of its feed-forward part.
        n_tokens: tokens per image inside the tower (patches, and [CLS] where there is one).
        n_visual: visual tokens per image that reach the language model.
        rows: rows of the visual grid of one image.
        cols: columns of the visual grid of one image.
    """

    n_layers: int
    hidden_size: int
    intermediate_size: int
    n_tokens: int
    n_visual: int
    rows: int
    cols: int


@dataclass(frozen=True)
class ModelShape:
    """The language model as arithmetic sees it.

    Attributes:
        n_layers: decoder layers, L.
        hidden_size: model width, d.
        n_heads: query heads.
        n_kv_heads: key/value heads (grouped-query attention when below ``n_heads``).
        head_dim: width of one head.
        intermediate_size: feed-forward width, m.
        vocab_size: rows of the output head.
        bytes_per_element: bytes of one cached number (2 for fp16/bf16, 4 for fp32).
        ffn_matrices: 3 for a gated feed-forward (SwiGLU), 2 for a plain one.
        vision: the vision tower, where known.
        name: what to call it in reports.
    """

    n_layers: int
    hidden_size: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    intermediate_size: int
    vocab_size: int
    bytes_per_element: int = 2
    ffn_matrices: int = 3
    vision: VisionShape | None = None
    name: str = ""

    @property
    def kv_bytes_per_token_layer(self) -> int:
        """Bytes that one token's key and value take in one layer's cache."""
        return 2 * self.n_kv_heads * self.head_dim * self.bytes_per_element
