"""InternVL: an image resized to a canvas of tiles, and its thumbnail behind them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from tokentrim import (
    NOMINAL_SIZE,
    Cut,
    Encoding,
    Layout,
    ModelShape,
    Places,
    UnsupportedError,
    VisionShape,
    complaint,
    submodule,
)
from tokentrim_adapters import _llava, _pieces

_GLIMPSE = 16  # cells along each side of what is remembered of a piece


class InternVLAdapter(_pieces.PiecesAdapter):
    """``InternVLForConditionalGeneration``: InternViT tower with [CLS], pixel shuffle, Qwen2, Qwen3 or Llama decoder.

    An image is stretched to the canvas of tiles whose shape is nearest to its own, and a thumbnail of the whole comes
    last; all pieces of an image stand in one run of the prompt. The model is told neither an image's size nor the
    shape of its canvas: that is the one whose tiles, put together, look like the thumbnail. The frames of a video are
    images of one piece.

    ```bibtex
    @misc{zhu2025internvl3,
      title={{InternVL3}: Exploring Advanced Training and Test-Time Recipes for Open-Source Multimodal Models},
      author={Zhu, Jinguo and Wang, Weiyun and Chen, Zhe and Liu, Zhaoyang and Ye, Shenglong and others},
      year={2025},
      note={arXiv:2504.10479}
    }
    ```
    """

    name: ClassVar[str] = "internvl"
    model_types: ClassVar[tuple[str, ...]] = ("internvl",)
    decoders: ClassVar[tuple[str, ...]] = ("llama", "qwen2", "qwen3")

    def locate(self, model: nn.Module) -> Layout:
        """Find entry, decoder and vision modules."""
        entry = _llava.entry_of(model)
        config: Any = entry.config
        shape = self.shape(config, bytes_per_element=_llava.element_size(model))
        layout = _llava.locate(model, shape)
        encoder = submodule(submodule(entry, "vision_tower", "an InternVL"), "encoder", "the vision tower")
        blocks = submodule(encoder, "layer", "its encoder").children()
        attentions = tuple(submodule(block, "attention", "a vision block") for block in blocks)
        return replace(layout, vision_attentions=attentions)

    def shape(self, config: Any, *, name: str = "", bytes_per_element: int | None = None) -> ModelShape:
        """Numbers of the text and vision configs, for an image of nominal size."""
        text, vision = config.text_config, config.vision_config
        merge = round(1 / config.downsample_ratio)
        joined = vision.hidden_size * merge**2
        tower = VisionShape(
            n_layers=vision.num_hidden_layers,
            hidden_size=vision.hidden_size,
            intermediate_size=vision.intermediate_size,
            merge=merge,
            projector_weights=(joined + text.hidden_size) * text.hidden_size,
            tiling=TiledCanvas(vision.image_size[0], vision.image_size[0] // vision.patch_size[0], merge),
        )
        return _llava.model_shape(config, tower.for_image(*NOMINAL_SIZE), name, bytes_per_element)

    def preprocessed(self, shape: ModelShape, settings: Mapping[str, Any]) -> ModelShape:
        """With the least and most tiles of the image processor, where it says some."""
        vision = shape.vision
        if vision is None or not isinstance(vision.tiling, TiledCanvas):
            return shape
        least, most = (settings.get(f"{word}_patches") for word in ("min", "max"))
        tiling = replace(vision.tiling, least=least or vision.tiling.least, most=most or vision.tiling.most)
        return replace(shape, vision=replace(vision, tiling=tiling).for_image(*NOMINAL_SIZE))

    def places(self, layout: Layout, encoding: Encoding, item: int) -> Places:
        """One piece, as a picture of its own: which pieces are one image, the prompt tells (see :meth:`pictures`)."""
        side = _pieces.tiling_of(layout).tokens
        return Places.raster(side, side)

    def facts(self, layout: Layout, encoding: Encoding) -> Mapping[str, Any]:
        """What every piece looks like from afar."""
        pixels = encoding.argument("pixel_values").float()
        return {"glimpses": torch.nn.functional.adaptive_avg_pool2d(pixels, _GLIMPSE)}

    def pictures(self, layout: Layout, encoding: Encoding, prompts: Sequence[Tensor]) -> list[Places]:
        """Tiles and thumbnail of each run of placeholders.

        Raises:
            UnsupportedError: when tiles were encoded outside the context, where nobody saw them.
        """
        config: Any = layout.entry.config
        side, found, first = _pieces.tiling_of(layout).tokens, list[Places](), 0
        for prompt in prompts:
            for start, end in _pieces.runs(prompt, config.image_token_id):
                pieces = (end - start) // side**2
                rows, cols = _canvas(encoding, first, pieces) if pieces > 1 else (0, 0)
                found.append(_pieces.cut_up(rows, cols, side))
                first += pieces
        return found


@dataclass(frozen=True)
class TiledCanvas(_pieces.CutUp):
    """Every image is stretched to a canvas of whole tiles; a thumbnail comes last where there are several.

    Attributes:
        least: tiles of a canvas, at least.
        most: tiles of a canvas, at most.
    """

    cls: ClassVar[int] = 1
    least: int = 1
    most: int = 12

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of tiles: nearest to the image's proportions; of equals, more where it has the pixels."""
        best, nearest = (1, 1), float("inf")
        sides = range(1, self.most + 1)
        shapes = [(rows, cols) for cols in sides for rows in sides if self.least <= rows * cols <= self.most]
        for rows, cols in sorted(shapes, key=lambda shape: shape[0] * shape[1]):
            apart = abs(width / height - cols / rows)
            fills = height * width > 0.5 * self.pixels**2 * rows * cols
            if apart < nearest or (apart == nearest and fills):
                best, nearest = (rows, cols), apart
        return best

    def cut(self, height: int, width: int, images: int = 1) -> Cut:
        """Tiles and a thumbnail, or one piece."""
        self.require_size(height, width)
        rows, cols = self.grid(height, width)
        if rows * cols == 1:
            return self.cut_into(0, 0, f"{height}x{width}", "one piece")
        return self.cut_into(rows, cols, f"{height}x{width}", f"{rows}x{cols} tiles and a thumbnail")


def _canvas(encoding: Encoding, first: int, pieces: int) -> tuple[int, int]:
    """Rows and columns of the tiles among ``pieces`` pieces from number ``first``, of which the last is a thumbnail.

    Raises:
        UnsupportedError: when nobody saw them.
    """
    glimpses: Tensor | None = encoding.facts.get("glimpses")
    if glimpses is None:
        raise UnsupportedError(
            complaint("the tiles of an image", "be encoded inside the context, so that their arrangement is known",
                      "features made elsewhere", "pass pixel_values to generate() or to the model")
        )  # fmt: skip
    seen = glimpses[first : first + pieces].cpu()
    tiles, thumbnail = seen[:-1], seen[-1]
    shapes = [(rows, len(tiles) // rows) for rows in range(1, len(tiles) + 1) if len(tiles) % rows == 0]

    def unlike(shape: tuple[int, int]) -> float:
        rows, cols = shape
        whole = tiles.unflatten(0, shape).permute(2, 0, 3, 1, 4).flatten(3, 4).flatten(1, 2)
        small = whole.unflatten(2, (_GLIMPSE, cols)).unflatten(1, (_GLIMPSE, rows)).mean((2, 4))
        return float((small - thumbnail).square().sum())

    return min(shapes, key=unlike)
