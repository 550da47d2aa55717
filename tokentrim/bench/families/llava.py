"""LLaVA-1.5: a CLIP tower, a picture of one size, a decoder of Llama's make."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, ClassVar, Final

import torch
from torch import Tensor

from tokentrim.bench.families.base import IMAGE, Geometry, decoder, tower


@dataclass(frozen=True, kw_only=True)
class Clip(Geometry):
    """A CLIP tower before a decoder of Llama's make, with as many heads for keys and values as for queries."""

    @property
    def tile_size(self) -> int:
        """Side of what the tower encodes at once, in pixels."""
        return self.image_size

    def parts(self) -> dict[str, Any]:
        """The configs of tower and decoder, and what all LLaVAs have in common, by name."""
        from transformers import CLIPVisionConfig, LlamaConfig

        vision = CLIPVisionConfig(
            hidden_size=self.vision_hidden_size,
            intermediate_size=self.vision_intermediate_size,
            num_hidden_layers=self.vision_layers,
            num_attention_heads=self.vision_heads,
            image_size=self.tile_size,
            patch_size=self.patch,
            projection_dim=self.vision_hidden_size,
        )
        text = LlamaConfig(
            vocab_size=self.vocab_size,
            hidden_size=self.hidden_size,
            intermediate_size=self.intermediate_size,
            num_hidden_layers=self.n_layers,
            num_attention_heads=self.n_heads,
            num_key_value_heads=self.n_heads,
            max_position_embeddings=65536,
        )
        return {
            "vision_config": vision,
            "text_config": text,
            "image_token_id": IMAGE,
            "vision_feature_select_strategy": "default",
            "vision_feature_layer": -2,
        }


@dataclass(frozen=True, kw_only=True)
class Llava(Clip):
    """LLaVA-1.5: each image is one square of patches."""

    architecture: ClassVar[str] = "LlavaForConditionalGeneration"

    @property
    def n_visual(self) -> int:
        """One per patch."""
        return (self.image_size // self.patch) ** 2

    def config(self) -> Any:
        """The transformers config."""
        from transformers import LlavaConfig

        config_class: Any = LlavaConfig  # its fields are set by a decorator that type checkers do not see through
        return config_class(**self.parts(), image_seq_length=self.n_visual)

    def pictures(self, count: int, generator: torch.Generator) -> dict[str, Tensor]:
        """``pixel_values`` [count, 3, S, S]."""
        return {"pixel_values": torch.randn(count, 3, self.image_size, self.image_size, generator=generator)}


VICUNA_7B: Final[Mapping[str, int]] = MappingProxyType(decoder(32, 4096, 32, 11008, 32064))
CLIP_L: Final[Mapping[str, int]] = MappingProxyType(tower(24, 1024, 16, 4096))

# The tower is scaled with the decoder, so that it keeps its 5 % of a prefill's FLOPs.
SCALED: Final[Mapping[str, int]] = MappingProxyType(decoder(32, 1024, 16, 2752, 8000) | tower(24, 256, 4, 1024))
_SCALED: Final = Llava(
    **SCALED,
    image_size=336,
    summary="LLaVA-1.5-7B at a quarter of the width: the same 32 layers and 576 visual tokens",
)

GEOMETRIES: Final[Mapping[str, Geometry]] = MappingProxyType(
    {
        "tiny": Llava(
            **decoder(12, 32, 4, 64, 128),
            **tower(2, 16, 2, 32),
            image_size=56,
            summary="16 visual tokens; for trying the bench itself, its times mean nothing",
        ),
        "scaled": _SCALED,
        "scaled-8": replace(
            _SCALED,
            n_layers=8,
            vision_layers=6,
            summary="a quarter of the layers of scaled, for many images or large batches on a small machine",
        ),
        "scaled-2": replace(
            _SCALED,
            n_layers=2,
            vision_layers=2,
            summary="two layers of scaled, for caches that are large beside the weights",
        ),
        "narrow-4": Llava(
            **decoder(4, 512, 8, 1376, 8000),
            **tower(3, 128, 2, 512),
            image_size=336,
            summary="four layers of half the width of scaled, for tens of thousands of visual tokens",
        ),
        "llava-1.5-7b": Llava(**VICUNA_7B, **CLIP_L, image_size=336, summary="full size, 14 GB in 16 bits"),
        "llava-1.5-13b": Llava(
            **decoder(40, 5120, 40, 13824, 32064), **CLIP_L, image_size=336, summary="full size, 27 GB in 16 bits"
        ),
    }
)
"""Geometries by name."""
