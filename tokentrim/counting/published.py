"""Shapes of published models, from the files of their repositories: plans need no weights and no folder.

The numbers are those of ``config.json`` and ``preprocessor_config.json`` in the repositories that REPOSITORIES names
(organisations llava-hf and Qwen on huggingface.co; of Qwen, the Instruct models). Caches are counted in 16 bits. A
user may set other pixel limits than the published ones: plan from a folder then.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final

from tokentrim.counting.shape import ModelShape, VisionShape
from tokentrim.counting.tilings import NOMINAL_SIZE, AnyResolution, FixedGrid, NativeResolution, Tiling

_NEXT: Final = AnyResolution(
    pixels=336, side=24, resolutions=((336, 672), (672, 336), (672, 672), (1008, 336), (336, 1008)), cls=1
)
# Qwen2-VL and Qwen2.5-VL: min_pixels 3136, max_pixels 12845056. Qwen3-VL: size 65536 to 16777216.
_QWEN2: Final = NativeResolution(patch=14, merge=2, min_pixels=56 * 56, max_pixels=16384 * 28 * 28)
_QWEN25: Final = NativeResolution(patch=14, merge=2, min_pixels=56 * 56, max_pixels=16384 * 28 * 28, window=112)
_QWEN3: Final = NativeResolution(patch=16, merge=2, min_pixels=64 * 32 * 32, max_pixels=16384 * 32 * 32)


def _tower(layers: int, hidden: int, inner: int, tiling: Tiling, **more: Any) -> VisionShape:
    """A vision tower, with the counts of an image of nominal size."""
    return VisionShape(layers, hidden, inner, tiling=tiling, **more).for_image(*NOMINAL_SIZE)


def _clip(tiling: Tiling) -> VisionShape:
    return _tower(24, 1024, 4096, tiling, cls=1, feature_blocks=23)


def _qwen25(inner: int) -> VisionShape:
    """28 of 32 blocks attend within windows."""
    return _tower(32, 1280, inner, _QWEN25, ffn_matrices=3, windowed_layers=28, merge=2, mergers=1)


_FIXED: Final = _clip(FixedGrid(pixels=336, side=24, cls=1))
_TILED: Final = _clip(_NEXT)
_QWEN2_TOWER: Final = _tower(32, 1280, 5120, _QWEN2, merge=2, mergers=1)
# Three more mergers feed the first decoder layers.
_QWEN3_SMALL: Final = _tower(24, 1024, 4096, _QWEN3, merge=2, mergers=4)
_QWEN3_LARGE: Final = _tower(27, 1152, 4304, _QWEN3, merge=2, mergers=4)

_COLUMNS: Final = ("n_layers", "hidden_size", "n_heads", "n_kv_heads", "head_dim", "intermediate_size", "vocab_size")
_ROWS: Final[Mapping[str, tuple[tuple[int, ...], VisionShape]]] = {
    "llava-1.5-7b": ((32, 4096, 32, 32, 128, 11008, 32064), _FIXED),
    "llava-1.5-13b": ((40, 5120, 40, 40, 128, 13824, 32064), _FIXED),
    "llava-next-vicuna-7b": ((32, 4096, 32, 32, 128, 11008, 32064), _TILED),
    "llava-next-mistral-7b": ((32, 4096, 32, 8, 128, 14336, 32064), _TILED),
    "llava-next-vicuna-13b": ((40, 5120, 40, 40, 128, 13824, 32064), _TILED),
    "llava-next-34b": ((60, 7168, 56, 8, 128, 20480, 64064), _TILED),
    "qwen2-vl-2b": ((28, 1536, 12, 2, 128, 8960, 151936), _QWEN2_TOWER),
    "qwen2-vl-7b": ((28, 3584, 28, 4, 128, 18944, 152064), _QWEN2_TOWER),
    "qwen2-vl-72b": ((80, 8192, 64, 8, 128, 29568, 152064), _QWEN2_TOWER),
    "qwen2.5-vl-3b": ((36, 2048, 16, 2, 128, 11008, 151936), _qwen25(3420)),
    "qwen2.5-vl-7b": ((28, 3584, 28, 4, 128, 18944, 152064), _qwen25(3420)),
    "qwen2.5-vl-32b": ((64, 5120, 40, 8, 128, 27648, 152064), _qwen25(3456)),
    "qwen2.5-vl-72b": ((80, 8192, 64, 8, 128, 29568, 152064), _qwen25(3456)),
    "qwen3-vl-2b": ((28, 2048, 16, 8, 128, 6144, 151936), _QWEN3_SMALL),
    "qwen3-vl-4b": ((36, 2560, 32, 8, 128, 9728, 151936), _QWEN3_SMALL),
    "qwen3-vl-8b": ((36, 4096, 32, 8, 128, 12288, 151936), _QWEN3_LARGE),
    "qwen3-vl-32b": ((64, 5120, 64, 8, 128, 25600, 151936), _QWEN3_LARGE),
}

PRESETS: Final[Mapping[str, ModelShape]] = MappingProxyType(
    {
        name: ModelShape(**dict(zip(_COLUMNS, numbers, strict=True)), vision=vision, name=name)
        for name, (numbers, vision) in _ROWS.items()
    }
)
"""Published models that plans can be made for without a folder; caches in 16 bits."""

REPOSITORIES: Final[Mapping[str, str]] = MappingProxyType(
    {
        "llava-1.5-7b": "llava-hf/llava-1.5-7b-hf",
        "llava-1.5-13b": "llava-hf/llava-1.5-13b-hf",
        "llava-next-vicuna-7b": "llava-hf/llava-v1.6-vicuna-7b-hf",
        "llava-next-mistral-7b": "llava-hf/llava-v1.6-mistral-7b-hf",
        "llava-next-vicuna-13b": "llava-hf/llava-v1.6-vicuna-13b-hf",
        "llava-next-34b": "llava-hf/llava-v1.6-34b-hf",
        **{
            f"{family.lower()}-{size}": f"Qwen/{family}-{size.upper()}-Instruct"
            for family, sizes in (
                ("Qwen2-VL", ("2b", "7b", "72b")),
                ("Qwen2.5-VL", ("3b", "7b", "32b", "72b")),
                ("Qwen3-VL", ("2b", "4b", "8b", "32b")),
            )
            for size in sizes
        },
    }
)
"""Where on the hub the weights of each preset are."""
