"""LLaVA-NeXT-Video: images as in LLaVA-NeXT, and videos of pooled frames."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from tokentrim import Encoding, Layout, Places
from tokentrim_adapters import _anyres, _llava
from tokentrim_adapters.llava_next import LlavaNextAdapter


class LlavaNextVideoAdapter(LlavaNextAdapter):
    """``LlavaNextVideoForConditionalGeneration``.

    Every frame of a video is one piece, pooled by the config's stride before the projector; a video has no line
    ends. The attention of a video's frames is pooled like their features (by the mean where a convolution pools
    them).

    ```bibtex
    @misc{zhang2024llavanextvideo,
      title={{LLaVA-NeXT}: A Strong Zero-shot Video Understanding Model},
      author={Zhang, Yuanhan and Li, Bo and Liu, Haotian and Lee, Yong Jae and Gui, Liangke and Fu, Di and
              Feng, Jiashi and Liu, Ziwei and Li, Chunyuan},
      year={2024},
      url={https://llava-vl.github.io/blog/2024-04-30-llava-next-video/}
    }
    ```
    """

    name: ClassVar[str] = "llava-next-video"
    model_types: ClassVar[tuple[str, ...]] = ("llava_next_video",)

    def places(self, layout: Layout, encoding: Encoding, item: int) -> Places:
        """Images as in LLaVA-NeXT; of a video, one plane per frame."""
        if encoding.modality == "image":
            return super().places(layout, encoding, item)
        config: Any = layout.entry.config
        side = _llava.side_of(config.vision_config) // config.spatial_pool_stride
        frames = encoding.lengths[item] // max(side * side, 1)
        return _anyres.checked("a video", Places.raster(side, side, frames=frames), encoding, item)

    def arrange(self, layout: Layout, encoding: Encoding, rows: Sequence[Tensor]) -> Tensor:
        """Packed like the features, frames pooled like them."""
        if encoding.modality == "image":
            return super().arrange(layout, encoding, rows)
        config: Any = layout.entry.config
        side, stride = _llava.side_of(config.vision_config), config.spatial_pool_stride
        if all(piece.shape[-1] == (side // stride) ** 2 for piece in rows):  # what enters the projector is pooled
            return torch.cat([piece.permute(1, 0, 2).flatten(1) for piece in rows], dim=1)
        maps = torch.cat([_anyres.squares(piece, side) for piece in rows]).float()
        pool = torch.nn.functional.max_pool2d if config.spatial_pool_mode == "max" else torch.nn.functional.avg_pool2d
        return pool(maps, stride, stride).permute(1, 0, 2, 3).flatten(1)
