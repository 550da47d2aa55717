"""Qwen2.5-VL: a picture at its own resolution, a tower with windows, patches merged 2 x 2, M-RoPE."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar, Final

import torch
from torch import Tensor

from tokentrim.bench.families.base import IMAGE, Geometry, decoder, tower

_VIDEO, _START, _END = IMAGE + 1, IMAGE + 2, IMAGE + 3
_MERGE: Final = 2  # patches along each side of a visual token
_FRAMES: Final = 2  # of a temporal patch; a picture is repeated


@dataclass(frozen=True, kw_only=True)
class Qwen25VL(Geometry):
    """Qwen2.5-VL with a square picture between a start and an end mark.

    Attributes:
        n_kv_heads: heads of keys and values.
        mrope_section: how many of a head's frequencies turn with time, height and width.
        window_size: side of an attention window of the tower, in pixels.
        full_blocks: blocks of the tower, from 0, that attend to the whole picture.
    """

    n_kv_heads: int
    mrope_section: tuple[int, int, int]
    window_size: int
    full_blocks: tuple[int, ...]

    architecture: ClassVar[str] = "Qwen2_5_VLForConditionalGeneration"
    first_text: ClassVar[int] = _END + 1
    marks: ClassVar[str] = "marks around images"

    @property
    def n_visual(self) -> int:
        """One per 2 x 2 patches."""
        return (self.image_size // (self.patch * _MERGE)) ** 2

    @property
    def n_marks(self) -> int:
        """A start and an end mark."""
        return 2

    def config(self) -> Any:
        """The transformers config."""
        from transformers import Qwen2_5_VLConfig

        text: dict[str, Any] = {
            "vocab_size": self.vocab_size,
            "hidden_size": self.hidden_size,
            "intermediate_size": self.intermediate_size,
            "num_hidden_layers": self.n_layers,
            "num_attention_heads": self.n_heads,
            "num_key_value_heads": self.n_kv_heads,
            "max_position_embeddings": 128000,
            "rms_norm_eps": 1e-6,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 1e6,
                "mrope_section": list(self.mrope_section),
            },
        }
        vision: dict[str, Any] = {
            "depth": self.vision_layers,
            "hidden_size": self.vision_hidden_size,
            "num_heads": self.vision_heads,
            "intermediate_size": self.vision_intermediate_size,
            "out_hidden_size": self.hidden_size,
            "patch_size": self.patch,
            "spatial_merge_size": _MERGE,
            "temporal_patch_size": _FRAMES,
            "window_size": self.window_size,
            "fullatt_block_indexes": list(self.full_blocks),
        }
        config_class: Any = Qwen2_5_VLConfig
        return config_class(
            text_config=text,
            vision_config=vision,
            image_token_id=IMAGE,
            video_token_id=_VIDEO,
            vision_start_token_id=_START,
            vision_end_token_id=_END,
        )

    def image_ids(self) -> Tensor:
        """The image between its marks."""
        return torch.tensor([_START, *[IMAGE] * self.n_visual, _END])

    def pictures(self, count: int, generator: torch.Generator) -> dict[str, Tensor]:
        """``pixel_values`` [patches of all, 3 * 2 * 14 * 14] and ``image_grid_thw`` [count, 3], in patches."""
        side = self.image_size // self.patch
        width = 3 * _FRAMES * self.patch**2
        return {
            "pixel_values": torch.randn(count * side * side, width, generator=generator),
            "image_grid_thw": torch.tensor([[1, side, side]]).repeat(count, 1),
        }

    def text_inputs(self, ids: Tensor) -> dict[str, Tensor]:
        """With ``mm_token_type_ids``, 1 at image positions: the model makes positions from them."""
        return {**super().text_inputs(ids), "mm_token_type_ids": (ids == IMAGE).long()}


GEOMETRIES: Final[Mapping[str, Geometry]] = MappingProxyType(
    {
        "tiny-qwen": Qwen25VL(
            **decoder(12, 64, 4, 96, 128),
            **tower(4, 32, 2, 48),
            n_kv_heads=2,
            mrope_section=(2, 3, 3),
            window_size=56,
            full_blocks=(1, 3),
            image_size=112,
            summary="Qwen2.5-VL with 16 visual tokens; its times mean nothing",
        ),
        # The tower takes about as large a share of a prefill's FLOPs as at full size.
        "scaled-qwen": Qwen25VL(
            **decoder(8, 1024, 8, 2752, 8000),
            **tower(8, 320, 4, 856),
            n_kv_heads=2,
            mrope_section=(16, 24, 24),
            window_size=112,
            full_blocks=(7,),
            image_size=672,
            summary="Qwen2.5-VL in the spirit of scaled-8: 8 layers, 576 visual tokens",
        ),
        "qwen2.5-vl-7b": Qwen25VL(
            **decoder(28, 3584, 28, 18944, 152064),
            **tower(32, 1280, 16, 3420),
            n_kv_heads=4,
            mrope_section=(16, 24, 24),
            window_size=112,
            full_blocks=(7, 15, 23, 31),
            image_size=1008,
            summary="full size, 1296 visual tokens, 17 GB in 16 bits",
        ),
    }
)
"""Geometries by name."""
