"""LLaVA-NeXT: a square picture as a thumbnail and 2 x 2 tiles, with a line end behind every row of the tiles."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar, Final

import torch
from torch import Tensor

from tokentrim.bench.families.base import Geometry, decoder, tower
from tokentrim.bench.families.llava import CLIP_L, SCALED, VICUNA_7B, Clip

_ACROSS: Final = 2  # tiles along each side of the picture


@dataclass(frozen=True, kw_only=True)
class LlavaNext(Clip):
    """LLaVA-NeXT with a picture as large as its largest square resolution, so that nothing of it is padding."""

    architecture: ClassVar[str] = "LlavaNextForConditionalGeneration"
    marks: ClassVar[str] = "line ends"

    @property
    def tile_size(self) -> int:
        """Side of a tile, and of the thumbnail, in pixels."""
        return self.image_size // _ACROSS

    @property
    def n_visual(self) -> int:
        """Those of the thumbnail, then those of the tiles."""
        return (1 + _ACROSS**2) * (self.tile_size // self.patch) ** 2

    @property
    def n_marks(self) -> int:
        """A line end per row of the tiles."""
        return _ACROSS * (self.tile_size // self.patch)

    def config(self) -> Any:
        """The transformers config, with the published resolutions in tiles."""
        from transformers import LlavaNextConfig

        config_class: Any = LlavaNextConfig
        shapes = ((1, 2), (2, 1), (2, 2), (3, 1), (1, 3))
        resolutions = [[rows * self.tile_size, cols * self.tile_size] for rows, cols in shapes]
        return config_class(**self.parts(), image_grid_pinpoints=resolutions)

    def pictures(self, count: int, generator: torch.Generator) -> dict[str, Tensor]:
        """``pixel_values`` [count, 5, 3, S, S] and ``image_sizes`` [count, 2], height and width in pixels."""
        side = self.tile_size
        return {
            "pixel_values": torch.randn(count, 1 + _ACROSS**2, 3, side, side, generator=generator),
            "image_sizes": torch.full((count, 2), self.image_size),
        }


GEOMETRIES: Final[Mapping[str, Geometry]] = MappingProxyType(
    {
        "tiny-next": LlavaNext(
            **decoder(12, 32, 4, 64, 128),
            **tower(2, 16, 2, 32),
            image_size=56,
            summary="LLaVA-NeXT with 20 visual tokens and 4 line ends; its times mean nothing",
        ),
        "scaled-next": LlavaNext(
            **SCALED,
            image_size=672,
            summary="LLaVA-NeXT-7B at a quarter of the width: 2880 visual tokens and 48 line ends, 32 layers",
        ),
        "llava-next-7b": LlavaNext(
            **VICUNA_7B,
            **CLIP_L,
            image_size=672,
            summary="full size on Vicuna, 2880 visual tokens and 48 line ends, 14 GB in 16 bits",
        ),
    }
)
"""Geometries by name."""
