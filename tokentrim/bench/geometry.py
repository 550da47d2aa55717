"""Model geometries for timing: LLaVA with weights made up in memory, and a prompt of one image per row."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, Final

import torch
from torch import Tensor

_PLACEHOLDER: Final = 3  # token id that stands for an image position; text ids lie above it


@dataclass(frozen=True)
class Geometry:
    """Sizes of a LLaVA.

    Attributes:
        n_layers: decoder layers.
        hidden_size: width of the decoder.
        n_heads: its attention heads (as many for keys and values).
        intermediate_size: its feed-forward width.
        vocab_size: its vocabulary.
        vision_layers: blocks of the CLIP tower.
        vision_hidden_size: width of the tower.
        vision_heads: attention heads of the tower.
        vision_intermediate_size: its feed-forward width.
        image_size: side of the picture in pixels; patches are 14 pixels wide.
        summary: one line for people.
    """

    n_layers: int
    hidden_size: int
    n_heads: int
    intermediate_size: int
    vocab_size: int
    vision_layers: int
    vision_hidden_size: int
    vision_heads: int
    vision_intermediate_size: int
    image_size: int
    summary: str

    @property
    def n_visual(self) -> int:
        """Visual tokens per image."""
        return (self.image_size // _PATCH) ** 2

    def config(self) -> Any:
        """The transformers config."""
        from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig

        vision = CLIPVisionConfig(
            hidden_size=self.vision_hidden_size,
            intermediate_size=self.vision_intermediate_size,
            num_hidden_layers=self.vision_layers,
            num_attention_heads=self.vision_heads,
            image_size=self.image_size,
            patch_size=_PATCH,
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
        config_class: Any = LlavaConfig  # its fields are set by a decorator that type checkers do not see through
        return config_class(
            vision_config=vision,
            text_config=text,
            image_token_id=_PLACEHOLDER,
            image_seq_length=self.n_visual,
            vision_feature_select_strategy="default",
            vision_feature_layer=-2,
        )


_PATCH: Final = 14

_CLIP_L: Final[Mapping[str, int]] = {
    "vision_layers": 24,
    "vision_hidden_size": 1024,
    "vision_heads": 16,
    "vision_intermediate_size": 4096,
    "image_size": 336,
}

# The tower is scaled with the decoder, so that it keeps its 5 % of a prefill's FLOPs.
_SCALED: Final = Geometry(
    n_layers=32,
    hidden_size=1024,
    n_heads=16,
    intermediate_size=2752,
    vocab_size=8000,
    vision_layers=24,
    vision_hidden_size=256,
    vision_heads=4,
    vision_intermediate_size=1024,
    image_size=336,
    summary="LLaVA-1.5-7B at a quarter of the width: the same 32 layers and 576 visual tokens",
)

GEOMETRIES: Final[Mapping[str, Geometry]] = MappingProxyType(
    {
        "tiny": Geometry(
            n_layers=12,
            hidden_size=32,
            n_heads=4,
            intermediate_size=64,
            vocab_size=128,
            vision_layers=2,
            vision_hidden_size=16,
            vision_heads=2,
            vision_intermediate_size=32,
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
        "llava-1.5-7b": Geometry(
            n_layers=32,
            hidden_size=4096,
            n_heads=32,
            intermediate_size=11008,
            vocab_size=32064,
            **_CLIP_L,
            summary="full size, 14 GB in 16 bits",
        ),
        "llava-1.5-13b": Geometry(
            n_layers=40,
            hidden_size=5120,
            n_heads=40,
            intermediate_size=13824,
            vocab_size=32064,
            **_CLIP_L,
            summary="full size, 27 GB in 16 bits",
        ),
    }
)
"""Geometries by name."""


def build_model(geometry: Geometry, device: torch.device, dtype: torch.dtype, seed: int) -> Any:
    """An untrained model of the geometry; torch's global random state is left as it was."""
    from transformers import LlavaForConditionalGeneration

    devices = [device] if device.type == "cuda" else []
    model_class: Any = LlavaForConditionalGeneration
    with torch.random.fork_rng(devices=devices), torch.device(device):
        torch.manual_seed(seed)
        model = model_class._from_config(geometry.config(), dtype=dtype)
    model = model.to(device).eval()
    # Random weights end an answer at random; every run has to generate the same number of tokens.
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0
    return model


def build_prompt(
    geometry: Geometry, model: Any, *, batch: int, prompt_tokens: int, seed: int, images: int = 1
) -> dict[str, Tensor]:
    """Inputs of ``generate``: per row one begin token, the images, then the rest of the text."""
    generator = torch.Generator().manual_seed(seed)
    text = torch.randint(_PLACEHOLDER + 1, geometry.vocab_size, (batch, prompt_tokens), generator=generator)
    image = torch.full((batch, images * geometry.n_visual), _PLACEHOLDER)
    ids = torch.cat([text[:, :1], image, text[:, 1:]], dim=1)
    pixels = torch.randn(batch * images, 3, geometry.image_size, geometry.image_size, generator=generator)
    return {
        "input_ids": ids.to(model.device),
        "attention_mask": torch.ones_like(ids).to(model.device),
        "pixel_values": pixels.to(model.device, model.dtype),
    }
