"""LLaVA-OneVision: tiled images whose plane is shrunk when it grows too large, several images, and videos."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from tokentrim import AnyResolution, Encoding, Layout, Places
from tokentrim_adapters import _anyres, _llava
from tokentrim_adapters.llava_next import LlavaNextAdapter

_LIMITED = re.compile(r"anyres_max_(\d+)")


class LlavaOnevisionAdapter(LlavaNextAdapter):
    """``LlavaOnevisionForConditionalGeneration``: SigLIP tower, Qwen2 decoder.

    A single image is tiled as in LLaVA-NeXT; where its plane has much more than ``anyres_max_N`` tiles' tokens, it
    is resized to about that many, and a token's tile is the one that its centre lies in. Images of a prompt with
    several are one plane and one line end each. A video's frames are halved along each side, with one line end behind
    the last.

    ```bibtex
    @misc{li2024llavaonevision,
      title={{LLaVA-OneVision}: Easy Visual Task Transfer},
      author={Li, Bo and Zhang, Yuanhan and Guo, Dong and Zhang, Renrui and Li, Feng and Zhang, Hao and
              Zhang, Kaichen and Zhang, Peiyuan and Li, Yanwei and Liu, Ziwei and Li, Chunyuan},
      year={2024},
      note={arXiv:2408.03326}
    }
    ```
    """

    name: ClassVar[str] = "llava-onevision"
    model_types: ClassVar[tuple[str, ...]] = ("llava_onevision",)

    def tiling(self, config: Any) -> AnyResolution:
        """What happens to an image's size."""
        return self._tiling(config, config.vision_aspect_ratio)

    def places(self, layout: Layout, encoding: Encoding, item: int) -> Places:
        """Of an image: thumbnail, assembled tiles, line ends. Of a video: one plane per frame, and one line end."""
        if encoding.modality == "image":
            return super().places(layout, encoding, item)
        side = _halved(layout)
        frames = (encoding.lengths[item] - 1) // (side * side)
        found = Places.joined([Places.raster(side, side, frames=frames), Places.nowhere(1, structure=True)])
        return _anyres.checked("a video", found, encoding, item)

    def arrange(self, layout: Layout, encoding: Encoding, rows: Sequence[Tensor]) -> Tensor:
        """Packed and resized like the features; 0 at line ends."""
        if encoding.modality == "image":
            return super().arrange(layout, encoding, rows)
        config: Any = layout.entry.config
        maps = torch.cat([_anyres.squares(piece, _llava.side_of(config.vision_config)) for piece in rows])
        halved = _anyres.resized(maps, _halved(layout), _halved(layout))
        videos = halved.unflatten(0, (len(encoding.lengths), -1)).permute(2, 0, 1, 3, 4).flatten(2)
        return torch.nn.functional.pad(videos, (0, 1)).flatten(1)

    def called(self, layout: Layout, encoding: Encoding) -> AnyResolution:
        """The tiling of a call, which may bring a limit of its own."""
        config: Any = layout.entry.config
        return self._tiling(config, encoding.arguments.get("vision_aspect_ratio") or config.vision_aspect_ratio)

    def _tiling(self, config: Any, aspect_ratio: str) -> AnyResolution:
        limited = _LIMITED.fullmatch(aspect_ratio)
        return replace(super().tiling(config), limit=int(limited[1]) if limited else None, single=True)


def _halved(layout: Layout) -> int:
    """Tokens along each side of a frame of a video."""
    config: Any = layout.entry.config
    return -(-_llava.side_of(config.vision_config) // 2)
