"""LLaVA 1.5 and its kin: one square grid of visual tokens per image, any vision tower, any decoder."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from torch import Tensor, nn

from tokentrim import Adapter, Encoding, FixedGrid, Layout, Modality, ModelShape, Places
from tokentrim_adapters import _llava


class LlavaAdapter(Adapter):
    """``LlavaForConditionalGeneration``: CLIP or SigLIP tower, two-layer projector, Llama, Mistral or Qwen2 decoder.

    Every image becomes the same number of visual tokens, a square grid in raster order (with
    ``vision_feature_select_strategy="full"`` on a tower with [CLS], that token comes first and has no place in it).

    ```bibtex
    @inproceedings{liu2024improved,
      title={Improved Baselines with Visual Instruction Tuning},
      author={Liu, Haotian and Li, Chunyuan and Li, Yuheng and Lee, Yong Jae},
      booktitle={Proceedings of the IEEE/CVF Conference on Computer Vision and Pattern Recognition (CVPR)},
      year={2024},
      note={arXiv:2310.03744}
    }
    ```
    """

    name: ClassVar[str] = "llava"
    model_types: ClassVar[tuple[str, ...]] = ("llava",)
    decoders: ClassVar[tuple[str, ...]] = _llava.DECODERS

    def locate(self, model: nn.Module) -> Layout:
        """Find entry, decoder and vision modules."""
        config: Any = _llava.entry_of(model).config
        return _llava.locate(model, self.shape(config, bytes_per_element=_llava.element_size(model)))

    def shape(self, config: Any, *, name: str = "", bytes_per_element: int | None = None) -> ModelShape:
        """Numbers of the text and vision configs; caches counted in the config's dtype unless told otherwise."""
        vision = config.vision_config
        side, cls = _llava.side_of(vision), _llava.cls_of(vision)
        kept = cls if config.vision_feature_select_strategy == "full" else 0
        tower = _llava.tower_of(config, FixedGrid(vision.image_size, side, cls, kept))
        return _llava.model_shape(config, tower, name, bytes_per_element)

    def fixed_length(self, layout: Layout, modality: Modality) -> int | None:
        """Every image becomes the same number of tokens."""
        return _llava.vision_of(layout).n_visual if modality == "image" else None

    def places(self, layout: Layout, encoding: Encoding, item: int) -> Places:
        """One square plane in raster order; a [CLS] token in front of it lies nowhere."""
        vision = _llava.vision_of(layout)
        extra = encoding.lengths[item] - vision.rows * vision.cols
        plane = Places.raster(vision.rows, vision.cols)
        return Places.joined([Places.nowhere(extra, structure=False), plane]) if extra else plane

    def arrange(self, layout: Layout, encoding: Encoding, rows: Sequence[Tensor]) -> Tensor:
        """[CLS] itself is not a visual token where the features leave it out."""
        n = encoding.lengths[0]
        return super().arrange(layout, encoding, [piece[..., piece.shape[-1] - n :] for piece in rows])
