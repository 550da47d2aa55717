"""LLaVA-NeXT (1.6): a thumbnail and the image's tiles, without their padding, with a line end behind every row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from torch import Tensor, nn

from tokentrim import Adapter, AnyResolution, Encoding, Layout, ModelShape, Places
from tokentrim_adapters import _anyres, _llava


class LlavaNextAdapter(Adapter):
    """``LlavaNextForConditionalGeneration`` on Vicuna, Mistral, Qwen2 or any other decoder of Llama's make.

    An image's placeholders are its thumbnail (plane 0), then the rows of its assembled tiles (plane 1), each with a
    line end, which is structure. Prompts whose images were encoded outside the context are refused: their sizes, and
    so the places of the line ends, are not known.

    ```bibtex
    @misc{liu2024llavanext,
      title={{LLaVA-NeXT}: Improved reasoning, {OCR}, and world knowledge},
      author={Liu, Haotian and Li, Chunyuan and Li, Yuheng and Li, Bo and Zhang, Yuanhan and Shen, Sheng and
              Lee, Yong Jae},
      year={2024},
      url={https://llava-vl.github.io/blog/2024-01-30-llava-next/}
    }
    ```
    """

    name: ClassVar[str] = "llava-next"
    model_types: ClassVar[tuple[str, ...]] = ("llava_next",)
    decoders: ClassVar[tuple[str, ...]] = _llava.DECODERS

    def locate(self, model: nn.Module) -> Layout:
        """Find entry, decoder and vision modules."""
        config: Any = _llava.entry_of(model).config
        shape = self.shape(config, bytes_per_element=_llava.element_size(model))
        return _llava.locate(model, shape, structured=True)

    def shape(self, config: Any, *, name: str = "", bytes_per_element: int | None = None) -> ModelShape:
        """Numbers of the text and vision configs, for an image of nominal size."""
        tower = _llava.tower_of(config, self.tiling(config))
        return _llava.model_shape(config, tower, name, bytes_per_element)

    def tiling(self, config: Any) -> AnyResolution:
        """What happens to an image's size."""
        vision = config.vision_config
        return AnyResolution(
            pixels=vision.image_size,
            side=_llava.side_of(vision),
            resolutions=_anyres.resolutions_of(config.image_grid_pinpoints),
            cls=_llava.cls_of(vision),
        )

    def preprocessed(self, shape: ModelShape, settings: Mapping[str, Any]) -> ModelShape:
        """With the image processor's resolutions, where it has some."""
        return _anyres.with_resolutions(shape, settings.get("image_grid_pinpoints"))

    def called(self, layout: Layout, encoding: Encoding) -> AnyResolution:
        """What happens to an image's size in one call."""
        return self.tiling(layout.entry.config)

    def places(self, layout: Layout, encoding: Encoding, item: int) -> Places:
        """Thumbnail, assembled tiles, line ends."""
        return _anyres.places(self.called(layout, encoding), encoding, item)

    def arrange(self, layout: Layout, encoding: Encoding, rows: Sequence[Tensor]) -> Tensor:
        """Packed like the features; 0 at line ends."""
        return _anyres.arrange(self.called(layout, encoding), encoding, rows)

    def pixels(self, layout: Layout, encoding: Encoding, item: int) -> Tensor:
        """The image's own pieces, or the video's frames."""
        if encoding.modality == "video":
            return super().pixels(layout, encoding, item)
        return _anyres.pixels(self.called(layout, encoding), encoding, item)
