"""Qwen2-VL, Qwen2.5-VL and Qwen3-VL: pictures at their own resolution, M-RoPE, a merger of 2 x 2 patches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from tokentrim import (
    NOMINAL_SIZE,
    Adapter,
    AdapterError,
    Encoding,
    Layout,
    ModelShape,
    NativeResolution,
    Need,
    Places,
    VisionShape,
    complaint,
    decoder_shape,
    submodule,
)

# Least and largest area in pixels of the published processors; a folder's own preprocessor_config.json goes before.
_LIMITS = {"qwen2_vl": (3136, 12845056), "qwen2_5_vl": (3136, 12845056)}
_LIMITS_OF_3 = (65536, 16777216)


class QwenVLAdapter(Adapter):
    """``Qwen2VL-``, ``Qwen2_5_VL-``, ``Qwen3VL-`` and ``Qwen3VLMoeForConditionalGeneration``.

    An image of t x h x w patches becomes t x h/2 x w/2 visual tokens in raster order, a video one plane per temporal
    patch (two frames); Qwen3-VL writes a time stamp in front of each, which is text. The tower has no [CLS]: its
    attention is read as the mean over all queries of an image or frame, averaged over the patches of a token. In
    Qwen2.5-VL most blocks attend within windows; their place is taken by the nearest earlier block that attends to the
    whole picture, and the windows' order is undone. Qwen3-VL adds features of several depths of the tower to the
    first decoder layers (DeepStack).

    ```bibtex
    @misc{wang2024qwen2vl,
      title={{Qwen2-VL}: Enhancing Vision-Language Model's Perception of the World at Any Resolution},
      author={Wang, Peng and Bai, Shuai and Tan, Sinan and Wang, Shijie and Fan, Zhihao and Bai, Jinze and others},
      year={2024},
      note={arXiv:2409.12191},
      keywords={qwen2_vl}
    }
    @misc{bai2025qwen25vl,
      title={{Qwen2.5-VL} Technical Report},
      author={Bai, Shuai and Chen, Keqin and Liu, Xuejing and Wang, Jialin and Ge, Wenbin and others},
      year={2025},
      note={arXiv:2502.13923},
      keywords={qwen2_5_vl}
    }
    @misc{bai2025qwen3vl,
      title={{Qwen3-VL} Technical Report},
      author={Bai, Shuai and Cai, Yuxuan and Chen, Ruizhe and Chen, Keqin and Chen, Xionghui and others},
      year={2025},
      note={arXiv:2511.21631},
      keywords={qwen3_vl qwen3_vl_moe}
    }
    ```
    """

    name: ClassVar[str] = "qwen-vl"
    model_types: ClassVar[tuple[str, ...]] = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe")
    decoders: ClassVar[tuple[str, ...]] = model_types

    def locate(self, model: nn.Module) -> Layout:
        """Find entry, decoder and vision modules."""
        whose = type(model).__name__
        entry = submodule(model, "model", whose) if hasattr(model, "lm_head") else model
        language = submodule(entry, "language_model", whose)
        tower = submodule(entry, "visual", whose)
        blocks = submodule(tower, "blocks", "the vision tower").children()
        config: Any = entry.config
        return Layout.around(
            entry,
            language,
            vision_attentions=tuple(submodule(block, "attn", "a vision block") for block in blocks),
            vision_config=tower.config,
            has_cls=False,
            shape=self.shape(config, bytes_per_element=next(language.parameters()).element_size()),
            full_blocks=_full_blocks(tower.config),
            mrope=True,
            unserved={Need.TOWER_GROUPS: "its merger joins 2 x 2 patches of a grid that merging tokens would break"},
        )

    def shape(self, config: Any, *, name: str = "", bytes_per_element: int | None = None) -> ModelShape:
        """Numbers of the text and vision configs; of a mixture of experts, those that a token runs through."""
        text, vision = config.text_config, config.vision_config
        experts = getattr(text, "num_experts_per_tok", None)
        tower_width = getattr(vision, "embed_dim", None) or vision.hidden_size  # Qwen2-VL names its output hidden_size
        tower_inner = getattr(vision, "intermediate_size", None) or int(tower_width * vision.mlp_ratio)
        least, largest = _LIMITS.get(config.model_type, _LIMITS_OF_3)
        patch, merge, full = _first(vision.patch_size), vision.spatial_merge_size, _full_blocks(vision)
        tower = VisionShape(
            n_layers=vision.depth,
            hidden_size=tower_width,
            intermediate_size=tower_inner,
            ffn_matrices=2 if full is None else 3,  # Qwen2.5-VL's tower is gated
            windowed_layers=0 if full is None else vision.depth - len(full),
            merge=merge,
            mergers=1 + len(getattr(vision, "deepstack_visual_indexes", ())),
            tiling=NativeResolution(patch, merge, least, largest, window=getattr(vision, "window_size", 0)),
        )
        return decoder_shape(
            config,
            text,
            name=name,
            bytes_per_element=bytes_per_element,
            dtype=torch.bfloat16,
            vision=tower.for_image(*NOMINAL_SIZE),
            width=experts * text.moe_intermediate_size if experts else None,
        )

    def preprocessed(self, shape: ModelShape, settings: Mapping[str, Any]) -> ModelShape:
        """With the image processor's limits of an image's area, where it has some."""
        vision = shape.vision
        if vision is None or not isinstance(vision.tiling, NativeResolution):
            return shape
        limited = replace(vision, tiling=vision.tiling.with_limits(settings))
        return replace(shape, vision=limited.for_image(*NOMINAL_SIZE))

    def places(self, layout: Layout, encoding: Encoding, item: int) -> Places:
        """One plane of merged tokens per temporal patch."""
        frames, rows, cols = _merged(layout, encoding)[item]
        if frames * rows * cols != encoding.lengths[item]:
            raise AdapterError(
                complaint(f"{encoding.modality} {item} of the prompt", f"be {frames} x {rows} x {cols} tokens",
                          encoding.lengths[item], "its layout has drifted from the one this adapter knows")
            )  # fmt: skip
        return Places.raster(rows, cols, frames=frames)

    def pixels(self, layout: Layout, encoding: Encoding, item: int) -> Tensor:
        """The picture's own patches of the batch's long list."""
        patches = [int(n) for n in _grids(encoding).prod(-1).tolist()]
        return encoding.argument("pixel_values", "pixel_values_videos").split(patches)[item]

    def arrange(self, layout: Layout, encoding: Encoding, rows: Sequence[Tensor]) -> Tensor:
        """Mean over the patches of each merged token, in raster order."""
        config = layout.vision_config
        received = super().arrange(layout, encoding, rows).unflatten(1, (-1, config.spatial_merge_size**2)).mean(-1)
        window = getattr(config, "window_size", None)
        if not window:
            return received
        side = window // config.spatial_merge_size // _first(config.patch_size)
        return received[:, _window_order(_merged(layout, encoding), side).argsort().to(received.device)]


def _full_blocks(config: Any) -> tuple[int, ...] | None:
    full = getattr(config, "fullatt_block_indexes", None)
    return None if full is None else tuple(sorted(full))


def _grids(encoding: Encoding) -> Tensor:
    """int64 [items, 3]: patches in time, height and width."""
    return encoding.argument(f"{encoding.modality}_grid_thw")


def _merged(layout: Layout, encoding: Encoding) -> list[tuple[int, int, int]]:
    """Temporal patches, rows and columns of the visual tokens of every item."""
    merge = layout.vision_config.spatial_merge_size
    return [(int(t), int(h) // merge, int(w) // merge) for t, h, w in _grids(encoding).tolist()]


def _window_order(sizes: Sequence[tuple[int, int, int]], side: int) -> Tensor:
    """int64 [tokens]: raster number of each merged token in the order in which the tower's windows hold them."""
    orders: list[Tensor] = []
    first = 0
    for frames, rows, cols in sizes:
        number = torch.arange(frames * rows * cols)
        frame, row, col = number // (rows * cols), number // cols % rows, number % cols
        across = -(-cols // side)
        window = (frame * -(-rows // side) + row // side) * across + col // side
        orders.append(torch.argsort(window, stable=True) + first)
        first += frames * rows * cols
    return torch.cat(orders)


def _first(size: Any) -> int:
    """A patch size, given as one number or as (height, width)."""
    return int(size) if isinstance(size, int) else int(size[0])
