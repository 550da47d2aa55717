"""ModelShape: the numbers of a model that budgets, plans and accounting need, read from its config alone."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Final

from tokentrim.counting.tilings import Tiling
from tokentrim.errors import ConfigError, complaint

_USUAL_VISUAL = 576
MOST_LAYERS: Final = 10_000
"""Layers that a model or a tower may have: plans, traces and reports count every one of them."""
MOST_VISUAL: Final = 1 << 24
"""Visual tokens that an image may become: no prompt holds more, and what counts them stays below 64 bits."""
_WIDEST: Final = 1 << 31
"""Of any other number: quotients of their products still are floating-point numbers."""


def _require(whom: str, least: int, most: int, **numbers: Any) -> None:
    """Raise ConfigError unless all numbers are whole and lie in ``least..most``."""
    for name, number in numbers.items():
        if isinstance(number, bool) or not isinstance(number, int) or not least <= number <= most:
            raise ConfigError(complaint(f"{name} of {whom}", f"be a whole number in {least}..{most}", number))


@dataclass(frozen=True)
class VisionShape:
    """The vision tower as arithmetic sees it, and one image in it.

    Where images become different numbers of tokens, the counts are those of a nominal image, and :meth:`for_image`
    gives those of another. Numbers that no tower has raise ConfigError.

    Attributes:
        n_layers: encoder blocks; 0, and the sizes below 0, too, where the tower is known by what was counted alone.
        hidden_size: width of the tower.
        intermediate_size: width of its feed-forward part.
        n_tokens: tokens per piece of an image inside the tower (patches, and [CLS] where there is one).
        n_visual: visual tokens per image that reach the language model.
        rows: rows of the visual grid of one image (of the assembled tiles, where an image is tiled).
        cols: columns of that grid.
        pieces: separately encoded pieces per image.
        n_structure: placeholders per image that are not visual tokens (line ends).
        n_projected: tokens per image that pass the projector; None = the visual tokens.
        ffn_matrices: 3 for a gated feed-forward part of the tower, 2 for a plain one.
        windowed_layers: encoder blocks whose attention stays inside windows.
        window_pairs: pairs of tokens that attend to each other in such a block, per image.
        merge: patches along each side that the projector makes one visual token.
        mergers: 0 for a two-layer projector as wide as the language model; otherwise the number of projectors that
            are as wide as the patches they merge.
        projector_weights: weights that a visual token passes in a projector of any other make; None in those two.
        tiling: what happens to an image's size; None where nothing is known of it.
        cls: those of ``n_tokens`` that are no patches.
        feature_blocks: blocks up to the one whose output becomes the features; None = all of them.
        image: (height, width, images of its prompt) that the counts are of; None where no size was named.
    """

    n_layers: int
    hidden_size: int
    intermediate_size: int
    n_tokens: int = 0
    n_visual: int = 0
    rows: int = 0
    cols: int = 0
    pieces: int = 1
    n_structure: int = 0
    n_projected: int | None = None
    ffn_matrices: int = 2
    windowed_layers: int = 0
    window_pairs: int = 0
    merge: int = 1
    mergers: int = 0
    projector_weights: int | None = None
    tiling: Tiling | None = None
    cls: int = 0
    feature_blocks: int | None = None
    image: tuple[int, int, int] | None = None

    def __post_init__(self) -> None:
        whom = "a vision tower"
        _require(whom, 0, MOST_LAYERS, layers=self.n_layers, windowed_layers=self.windowed_layers)
        least = 1 if self.n_layers else 0
        _require(whom, least, _WIDEST, hidden_size=self.hidden_size, intermediate_size=self.intermediate_size)
        _require(whom, 0, MOST_VISUAL, visual_tokens=self.n_visual, rows=self.rows, columns=self.cols,
                 pieces=self.pieces, line_ends=self.n_structure)  # fmt: skip

    @property
    def merging_blocks(self) -> int:
        """Blocks in which tokens can merge before they become features."""
        return self.n_layers if self.feature_blocks is None else self.feature_blocks

    @property
    def varies(self) -> bool:
        """Whether images of different sizes become different numbers of visual tokens."""
        return self.tiling is not None and self.tiling.varies

    def for_image(self, height: int, width: int, images: int = 1) -> VisionShape:
        """This tower with the counts of an image of ``height`` x ``width`` pixels, one of ``images`` in its prompt.

        Raises:
            DataError: when no image of this size is accepted.
        """
        if self.tiling is None:
            return self
        cut = self.tiling.cut(height, width, images)
        return replace(
            self,
            pieces=cut.pieces,
            n_tokens=cut.tokens,
            n_visual=cut.n_visual,
            n_structure=cut.n_structure,
            rows=cut.rows,
            cols=cut.cols,
            n_projected=cut.projected,
            window_pairs=cut.window_pairs,
            image=(height, width, images),
        )

    @property
    def flops(self) -> int | None:
        """FLOPs of tower and projector for one image, where they were counted; None where sizes or nothing tells."""
        if self.n_layers or self.tiling is None or self.image is None:
            return None
        return self.tiling.flops(*self.image)

    def with_structure_visual(self) -> VisionShape:
        """This tower where line ends count as visual tokens; no projector makes those."""
        return replace(self, n_visual=self.n_visual + self.n_structure, n_structure=0)


@dataclass(frozen=True)
class ModelShape:
    """The language model as arithmetic sees it.

    Numbers that no model has raise ConfigError.

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

    def __post_init__(self) -> None:
        whom = f"model {self.name!r}" if self.name else "a model"
        _require(whom, 1, MOST_LAYERS, decoder_layers=self.n_layers)
        _require(whom, 1, _WIDEST, hidden_size=self.hidden_size, attention_heads=self.n_heads,
                 key_value_heads=self.n_kv_heads, head_dim=self.head_dim, intermediate_size=self.intermediate_size,
                 vocab_size=self.vocab_size, bytes_per_element=self.bytes_per_element)  # fmt: skip
        if self.n_heads % self.n_kv_heads:
            raise ConfigError(
                complaint(f"attention_heads of {whom}", f"be shared by its {self.n_kv_heads} key/value heads",
                          self.n_heads)
            )  # fmt: skip

    @property
    def uncounted(self) -> str:
        """Why the costs of the vision tower are not known; empty where they are."""
        vision = self.vision
        if vision is None:
            return "nothing is known of it"
        if vision.n_layers or vision.flops is not None:
            return ""
        if vision.tiling is None or vision.image is None:
            return "no size of an image is known"
        return vision.tiling.uncounted(*vision.image)

    @property
    def usual_visual(self) -> int:
        """Visual tokens of one image as the vision tower describes it; those of LLaVA-1.5 where none is known."""
        return _USUAL_VISUAL if self.vision is None else self.vision.n_visual

    @property
    def attention_width(self) -> int:
        """Numbers of one token in the query heads together, ``H h``."""
        return self.n_heads * self.head_dim

    @property
    def kv_bytes_per_token_layer(self) -> int:
        """Bytes that one token's key and value take in one layer's cache."""
        return 2 * self.n_kv_heads * self.head_dim * self.bytes_per_element
