"""Mistral3: pictures at their own resolution through a Pixtral tower, patches merged, a break behind every row."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from tokentrim import (
    NOMINAL_SIZE,
    Adapter,
    Cut,
    Encoding,
    Layout,
    ModelShape,
    Places,
    Tiling,
    VisionShape,
    submodule,
)
from tokentrim_adapters import _anyres, _llava


class Mistral3Adapter(Adapter):
    """``Mistral3ForConditionalGeneration``: Pixtral tower, a merger of 2 x 2 patches, Mistral decoder.

    An image keeps its proportions, within a longest side, and is one plane of merged patches. The breaks behind its
    rows and its end are tokens of their own, which are text here, and stay. The tower sees all images of a call in one
    row under a mask; its attention is read image by image, as the mean over all queries and the patches of a token.

    ```bibtex
    @misc{agrawal2024pixtral,
      title={{Pixtral 12B}},
      author={Agrawal, Pravesh and Antoniak, Szymon and Bou Hanna, Emma and Bout, Baptiste and Chaplot, Devendra and
              others},
      year={2024},
      note={arXiv:2410.07073}
    }
    ```
    """

    name: ClassVar[str] = "mistral3"
    model_types: ClassVar[tuple[str, ...]] = ("mistral3",)
    decoders: ClassVar[tuple[str, ...]] = ("mistral",)

    def locate(self, model: nn.Module) -> Layout:
        """Find entry, decoder and vision modules."""
        entry = _llava.entry_of(model)
        config: Any = entry.config
        layout = _llava.locate(model, self.shape(config, bytes_per_element=_llava.element_size(model)))
        transformer = submodule(submodule(entry, "vision_tower", "a Mistral3"), "transformer", "the vision tower")
        blocks = submodule(transformer, "layers", "its transformer").children()
        attentions = tuple(submodule(block, "attention", "a vision block") for block in blocks)
        return replace(layout, vision_attentions=attentions, projector=None, packed=True)

    def shape(self, config: Any, *, name: str = "", bytes_per_element: int | None = None) -> ModelShape:
        """Numbers of the text and vision configs, for an image of nominal size."""
        text, vision, merge = config.text_config, config.vision_config, config.spatial_merge_size
        tower = VisionShape(
            n_layers=vision.num_hidden_layers,
            hidden_size=vision.hidden_size,
            intermediate_size=vision.intermediate_size,
            ffn_matrices=3,
            merge=merge,
            projector_weights=(merge * vision.hidden_size) ** 2
            + (vision.hidden_size + text.hidden_size) * text.hidden_size,
            tiling=Fitted(vision.patch_size, merge, vision.image_size),
        )
        return _llava.model_shape(config, tower.for_image(*NOMINAL_SIZE), name, bytes_per_element)

    def preprocessed(self, shape: ModelShape, settings: Mapping[str, Any]) -> ModelShape:
        """With the image processor's longest side, where it says one."""
        vision, size = shape.vision, settings.get("size")
        longest: Any = size.get("longest_edge") if isinstance(size, Mapping) else None
        if not longest or vision is None or not isinstance(vision.tiling, Fitted):
            return shape
        changed = replace(vision, tiling=replace(vision.tiling, longest=int(longest)))
        return replace(shape, vision=changed.for_image(*NOMINAL_SIZE))

    def places(self, layout: Layout, encoding: Encoding, item: int) -> Places:
        """One plane of merged patches."""
        rows, cols = _merged(layout, encoding)[item]
        return _anyres.checked("an image", Places.raster(rows, cols), encoding, item)

    def pixels(self, layout: Layout, encoding: Encoding, item: int) -> Tensor:
        """The image without what pads it to the size of the others."""
        height, width = _anyres.sizes_of(encoding)[item]
        return encoding.argument("pixel_values")[item, :, :height, :width]

    def arrange(self, layout: Layout, encoding: Encoding, rows: Sequence[Tensor]) -> Tensor:
        """Mean over the patches of each merged token, in raster order."""
        config: Any = layout.entry.config
        merge, found = config.spatial_merge_size, list[Tensor]()
        for image, (height, width) in zip(rows, _merged(layout, encoding), strict=True):
            found.append(image[0].unflatten(-1, (height, merge, width, merge)).mean((-3, -1)).flatten(1))
        return torch.cat(found, dim=1)


@dataclass(frozen=True)
class Fitted(Tiling):
    """Every image is shrunk to a longest side where it is larger, and enlarged to whole tokens.

    Attributes:
        patch: pixels along each side of a patch.
        merge: patches along each side that become one visual token.
        longest: pixels along the longest side.
    """

    patch: int
    merge: int
    longest: int

    def cut(self, height: int, width: int, images: int = 1) -> Cut:
        """One piece of as many tokens as cover the image."""
        self.require_size(height, width)
        ratio, unit = max(height / self.longest, width / self.longest), self.patch * self.merge
        tall, wide = (math.floor(height / ratio), math.floor(width / ratio)) if ratio > 1 else (height, width)
        rows, cols = (tall - 1) // unit + 1, (wide - 1) // unit + 1
        return Cut.whole(
            rows,
            cols,
            self.merge,
            f"{height}x{width} pixels are resized to {rows * unit}x{cols * unit}: {rows}x{cols} = {rows * cols} "
            f"visual tokens of {unit}x{unit} pixels (longest side {self.longest} pixels)",
        )


def _merged(layout: Layout, encoding: Encoding) -> list[tuple[int, int]]:
    """Rows and columns of the visual tokens of every image."""
    config: Any = layout.entry.config
    unit = config.vision_config.patch_size * config.spatial_merge_size
    return [(height // unit, width // unit) for height, width in _anyres.sizes_of(encoding)]
