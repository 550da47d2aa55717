"""Gemma 3: pictures of one size whose tokens see each other, and layers with two kinds of position embeddings."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from tokentrim import (
    NOMINAL_SIZE,
    AdapterError,
    Cut,
    Encoding,
    Layout,
    ModelShape,
    Need,
    Places,
    VisionShape,
    complaint,
    decoder_shape,
    submodule,
)
from tokentrim_adapters import _llava, _pieces


class Gemma3Adapter(_pieces.PiecesAdapter):
    """``Gemma3ForConditionalGeneration``: SigLIP tower, patches averaged 4 x 4, Gemma 3 decoder.

    Every image becomes the same number of tokens, a square grid in raster order. In the prompt the tokens of one image
    see each other in both directions (``token_type_ids`` say so; without them the model sees backwards alone), and the
    decoder's layers take turns with two kinds of position embeddings. A crop of pan-and-scan is an image of its own:
    the text around it is all that tells whose crop it is, and differs from tokenizer to tokenizer.

    ```bibtex
    @misc{gemmateam2025gemma3,
      title={Gemma 3 Technical Report},
      author={{Gemma Team}},
      year={2025},
      note={arXiv:2503.19786}
    }
    ```
    """

    name: ClassVar[str] = "gemma3"
    model_types: ClassVar[tuple[str, ...]] = ("gemma3",)
    decoders: ClassVar[tuple[str, ...]] = ("gemma3",)
    reads_prompts: ClassVar[bool] = False

    def locate(self, model: nn.Module) -> Layout:
        """Find entry, decoder and vision modules.

        Raises:
            AdapterError: when something is missing, or the text itself is read in both directions.
        """
        entry = _llava.entry_of(model)
        config: Any = entry.config
        text = config.text_config
        if text.use_bidirectional_attention:
            raise AdapterError(
                complaint("use_bidirectional_attention of a Gemma 3 decoder", "be off: no token may see text behind it",
                          True, "load a checkpoint that generates text")
            )  # fmt: skip
        tower = submodule(entry, "vision_tower", "a Gemma 3")
        blocks = submodule(submodule(tower, "encoder", "the vision tower"), "layers", "its encoder").children()
        return Layout.around(
            entry,
            submodule(entry, "language_model", "a Gemma 3"),
            vision_attentions=tuple(submodule(block, "self_attn", "a vision block") for block in blocks),
            vision_config=tower.config,
            has_cls=False,
            shape=self.shape(config, bytes_per_element=_llava.element_size(model)),
            unserved={Need.TOWER_GROUPS: "it averages patches of a square grid that merging tokens would break"},
            rotary_kinds=tuple(text.layer_types),
            windows=tuple(text.sliding_window if "sliding" in kind else None for kind in text.layer_types),
        )

    def shape(self, config: Any, *, name: str = "", bytes_per_element: int | None = None) -> ModelShape:
        """Numbers of the text and vision configs; an image is one piece unless the image processor pans and scans."""
        text, vision = config.text_config, config.vision_config
        side, tokens = _llava.side_of(vision), math.isqrt(config.mm_tokens_per_image)
        tower = VisionShape(
            n_layers=vision.num_hidden_layers,
            hidden_size=vision.hidden_size,
            intermediate_size=vision.intermediate_size,
            merge=side // tokens,
            projector_weights=vision.hidden_size * text.hidden_size,
            tiling=Pooled(vision.image_size, side, side // tokens),
        ).for_image(*NOMINAL_SIZE)
        return decoder_shape(
            config, text, name=name, bytes_per_element=bytes_per_element, dtype=torch.bfloat16, vision=tower
        )

    def preprocessed(self, shape: ModelShape, settings: Mapping[str, Any]) -> ModelShape:
        """With the crops of pan-and-scan, where the image processor is set to make them."""
        vision = shape.vision
        if vision is None or not isinstance(vision.tiling, Pooled) or not settings.get("do_pan_and_scan"):
            return shape
        old, given = vision.tiling, {name: settings.get(f"pan_and_scan_{key}") for name, key in _PANS.items()}
        limits = {name: value for name, value in given.items() if value is not None}
        tiling = Panned(old.pixels, old.side, old.merge, **limits)
        return replace(shape, vision=replace(vision, tiling=tiling).for_image(*NOMINAL_SIZE))

    def places(self, layout: Layout, encoding: Encoding, item: int) -> Places:
        """One square plane in raster order."""
        side = _pieces.tiling_of(layout).tokens
        return Places.raster(side, side)

    def mutual(self, layout: Layout, arguments: Mapping[str, Any]) -> Tensor | None:
        """Each unbroken run of tokens that ``token_type_ids`` mark as a picture's."""
        kinds: Tensor | None = arguments.get("token_type_ids")
        if kinds is None:
            return None
        shown = kinds == 1
        begins = shown & ~nn.functional.pad(shown, (1, 0))[:, :-1]
        return (begins.cumsum(1) - 1).masked_fill(~shown, -1)


_PANS = {"least": "min_crop_size", "most": "max_num_crops", "ratio": "min_ratio_to_activate"}


@dataclass(frozen=True)
class Pooled(_pieces.CutUp):
    """Every image is brought to one square."""

    varies: ClassVar[bool] = False

    def cut(self, height: int, width: int, images: int = 1) -> Cut:
        """One piece for every size."""
        self.require_size(height, width)
        return self.cut_into(0, 0, f"{height}x{width}", "one piece")


@dataclass(frozen=True)
class Panned(Pooled):
    """The whole image, and behind it crops along its longer side, each as a picture of its own.

    Attributes:
        least: pixels of a crop's shorter side, at least.
        most: crops, at most.
        ratio: of the longer side to the shorter, below which no image is cropped.
    """

    varies: ClassVar[bool] = True
    least: int = 256
    most: int = 4
    ratio: float = 1.2

    def crops(self, height: int, width: int) -> int:
        """Number of crops; 0 for an image that stays whole."""
        longer, shorter = max(height, width), min(height, width)
        if longer / shorter < self.ratio:
            return 0
        wanted = min(longer // self.least, math.floor(longer / shorter + 0.5))
        number = min(self.most, max(2, wanted))
        return 0 if min(math.ceil(longer / number), shorter) < self.least else number

    def cut(self, height: int, width: int, images: int = 1) -> Cut:
        """The image, and its crops."""
        self.require_size(height, width)
        number = self.crops(height, width)
        how = f"itself and {number} crops, each" if number else "one piece"
        return replace(self.cut_into(1, number, f"{height}x{width}", how), rows=self.tokens, cols=self.tokens)
