"""Any other model with the usual seams: what can be told from its modules and its config, and nothing assumed."""

from __future__ import annotations

import inspect
import math
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from tokentrim import (
    FROM_TOWER,
    Adapter,
    AdapterError,
    Encoding,
    Layout,
    ModelShape,
    Need,
    Places,
    UnsupportedError,
    complaint,
    decoder_shape,
)

_SERVED_LAYERS = frozenset({"full_attention", "sliding_attention"})
_NO_DECODER = ("vision", "visual", "projector", "connector", "perceiver", "resampler", "qformer", "image")


class GenericAdapter(Adapter):
    """Models without an adapter of their own, asked last.

    The layout it recognises: one module with ``get_image_features`` and a config that names an image token; inside it a
    decoder with ``layers`` (one self-attention each), token embeddings and one rotary module. What that layout does not
    show, such as masks of a special form, the self-test finds out on a small random copy before a model is trimmed.

    The grid of an image is known where its encoding is told its sides (``image_grid_thw``, ``spatial_shapes``,
    ``image_sizes``) and as many tokens fill them, or else where it has a square number of tokens; whether these tokens
    lie in raster order is again for the self-test to find out. Each piece that is encoded on its own (a tile) counts as
    an image. Attention inside the vision tower is not read.
    """

    name: ClassVar[str] = "generic"
    model_types: ClassVar[tuple[str, ...]] = ()
    needs_proof: ClassVar[bool] = True

    def locate(self, model: nn.Module) -> Layout:
        """Find entry, decoder, attention and rotary modules.

        Raises:
            AdapterError: names what is missing or cannot be served.
        """
        entry = _entry(model)
        config: Any = entry.config
        text = config.get_text_config()
        _check_layer_types(text)
        if _token(config, "image") is None:
            raise _missing(entry, "name its image token in its config", "no image_token_id")
        language = _language_model(entry, text)
        layers = tuple(module for module in language.get_submodule("layers").children())
        rotary = _rotary(language)
        return Layout(
            entry=entry,
            language_model=language,
            layers=layers,
            attentions=tuple(_attention(layer, number) for number, layer in enumerate(layers)),
            text_config=language.config,
            rotary=rotary,
            vision_attentions=(),
            vision_config=None,
            has_cls=False,
            shape=self.shape(config, bytes_per_element=next(language.parameters()).element_size()),
            unserved=dict.fromkeys((*FROM_TOWER, Need.TOWER_GROUPS), "the generic adapter reads no vision tower"),
            mrope="mrope_section" in (getattr(text, "rope_parameters", None) or {}),
        )

    def shape(self, config: Any, *, name: str = "", bytes_per_element: int | None = None) -> ModelShape:
        """Numbers of the text config; nothing is known of the vision tower."""
        text = config.get_text_config()
        experts = getattr(text, "num_experts_per_tok", None)
        width = getattr(text, "moe_intermediate_size", None)
        return decoder_shape(
            config,
            text,
            name=name,
            bytes_per_element=bytes_per_element,
            dtype=torch.bfloat16,
            width=experts * width if experts and width else None,
        )

    def modalities(self, layout: Layout, arguments: dict[str, Any]) -> Tensor:  # type: ignore[override]
        """Placeholders by the config's token ids, whatever it calls them.

        Raises:
            UnsupportedError: for videos, which the self-test does not cover.
        """
        ids: Tensor | None = arguments.get("input_ids")
        if ids is None:
            return super().modalities(layout, arguments)
        config: Any = layout.entry.config
        image, video = _token(config, "image"), _token(config, "video")
        if video is not None and video != image and bool((ids == video).any()):
            raise UnsupportedError(
                complaint("the prompt of a model that only the generic adapter recognises", "hold images alone",
                          "a video", "pass its frames as images, or write an adapter for the family")
            )  # fmt: skip
        return (ids == image).to(torch.uint8)

    def places(self, layout: Layout, encoding: Encoding, item: int) -> Places:
        """One plane in raster order, of a known or a square grid.

        Raises:
            UnsupportedError: when the number of tokens fits no grid.
        """
        length = encoding.lengths[item]
        grids = encoding.arguments.get(f"{encoding.modality}_grid_thw")
        if grids is not None and len(grids) == len(encoding.lengths):
            frames, rows, cols = (int(n) for n in grids[item].tolist())
            for depth in (frames, 1):  # some families merge all frames into one plane
                merge = math.isqrt(max(depth * rows * cols // max(length, 1), 1))
                rest = rows % merge or cols % merge
                if not rest and depth * (rows // merge) * (cols // merge) == length:
                    return Places.raster(rows // merge, cols // merge, frames=depth)
        height, width = _size(encoding, item)
        rows = math.isqrt(length * height // max(width, 1))
        if grids is None and rows and length % rows == 0 and rows * width == length // rows * height:
            return Places.raster(rows, length // rows)
        raise UnsupportedError(
            complaint(f"{encoding.modality} {item} of the prompt", "have a grid that can be told from its encoding",
                      f"{length} tokens", "use a strategy that does not read the grid")
        )  # fmt: skip

    def pixels(self, layout: Layout, encoding: Encoding, item: int) -> Tensor:
        """One image's own pixels or patches.

        Raises:
            UnsupportedError: when it cannot be told which they are.
        """
        given = encoding.argument("pixel_values", "pixel_values_videos")
        grids = encoding.arguments.get(f"{encoding.modality}_grid_thw")
        if grids is not None and len(grids) == len(encoding.lengths):
            return given.split([int(n) for n in grids.prod(-1).tolist()])[item]
        if given.dim() == 5:  # [rows, pieces, ...]: pieces of nothing but zeros pad a batch, and are not encoded
            flat = given.flatten(0, 1)
            given = flat if len(flat) == len(encoding.lengths) else flat[(flat != 0).flatten(1).any(1)]
        if len(given) != len(encoding.lengths):
            raise UnsupportedError(
                complaint(f"the {encoding.modality}s of the prompt", "have one entry of pixel_values each",
                          tuple(given.shape), "use a strategy that draws nothing at random")
            )  # fmt: skip
        return given[item]


def _size(encoding: Encoding, item: int) -> tuple[int, int]:
    """Height and width of an image, in any unit; equal where nothing is said of them."""
    for name in ("image_sizes", "spatial_shapes"):
        sizes: Any = encoding.arguments.get(name)
        if sizes is not None and len(sizes) == len(encoding.lengths):
            return int(sizes[item][0]), int(sizes[item][1])
    return 1, 1


def _entry(model: nn.Module) -> nn.Module:
    """The innermost module that encodes images, and merges them into the text.

    Raises:
        AdapterError: when there is none.
    """
    config: Any = getattr(model, "config", None)
    if getattr(config, "is_encoder_decoder", False):
        raise _missing(model, "be decoder-only", "an encoder and a decoder")
    crossing = sorted({type(module).__name__ for name, module in model.named_modules() if _crosses(name, module)})
    if crossing:
        raise _missing(model, "hand images to its decoder as tokens of the prompt", f"cross-attention: {crossing}")
    found = [
        module
        for module in model.modules()
        if callable(getattr(type(module), "get_image_features", None))
        and "input_ids" in inspect.signature(module.forward).parameters
    ]
    if not found:
        raise _missing(model, "encode images with a method get_image_features", "none that has one")
    return found[-1]


def _crosses(name: str, module: nn.Module) -> bool:
    """Whether it is a decoder layer's attention to something outside of the prompt; projectors may have theirs."""
    decoder = ".layers." in name and not any(word in name for word in _NO_DECODER)
    return decoder and "CrossAttention" in type(module).__name__


def _check_layer_types(text: Any) -> None:
    kinds = set(getattr(text, "layer_types", None) or ()) - _SERVED_LAYERS
    if kinds:
        raise AdapterError(
            complaint(f"every decoder layer of {text.model_type!r}",
                      "attend to the whole prompt, or to a sliding window that holds it",
                      sorted(kinds), "tokens cannot be taken out between such layers by an adapter that knows no more")
        )  # fmt: skip


def _token(config: Any, modality: str) -> int | None:
    """The placeholder's id, under either of its usual names."""
    values = (getattr(config, f"{modality}_token_{word}", None) for word in ("id", "index"))
    return next((value for value in values if isinstance(value, int)), None)


def _language_model(entry: nn.Module, text: Any) -> nn.Module:
    """The outermost module with the decoder's layers and token embeddings.

    Raises:
        AdapterError: when there is none.
    """
    for module in entry.modules():
        layers = dict(module.named_children()).get("layers")
        if (
            isinstance(layers, nn.ModuleList)
            and len(layers) == text.num_hidden_layers
            and "inputs_embeds" in inspect.signature(module.forward).parameters
            and any(isinstance(inner, nn.Embedding) for inner in module.children())
        ):
            return module
    raise _missing(entry, f"hold a decoder with {text.num_hidden_layers} 'layers' and token embeddings", "none")


def _rotary(language: nn.Module) -> nn.Module:
    found = [module for module in language.children() if "rotary" in type(module).__name__.lower()]
    if len(found) != 1:
        names = [type(module).__name__ for module in found] or "none"
        raise _missing(language, "compute all positions with one rotary module", names)
    return found[0]


def _attention(layer: nn.Module, number: int) -> nn.Module:
    found = {name: type(module).__name__ for name, module in layer.named_children()}
    found = {name: kind for name, kind in found.items() if kind.endswith("Attention")}
    if len(found) != 1:
        kinds = found or [type(module).__name__ for module in layer.children()]
        raise _missing(layer, f"(decoder layer {number}) have one attention module", kinds)
    return layer.get_submodule(next(iter(found)))


def _missing(module: nn.Module, must: str, got: object) -> AdapterError:
    return AdapterError(
        complaint(f"{type(module).__name__}", must, got, "this model needs an adapter of its own, if it can have one")
    )
