"""LLaVA 1.5 and its kin: one square grid of visual tokens per image, any vision tower, any decoder."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from tokentrim.adapter import Adapter, Encoding, Layout, Modality, Places, child
from tokentrim.errors import AdapterError, complaint
from tokentrim.shape import ModelShape, VisionShape


class LlavaAdapter(Adapter):
    """``LlavaForConditionalGeneration``: CLIP or SigLIP tower, two-layer projector, Llama, Mistral or Qwen2 decoder.

    Every image becomes the same number of visual tokens, a square grid in raster order (with
    ``vision_feature_select_strategy="full"`` on a tower with [CLS], that token comes first and has no place in it).
    """

    name: ClassVar[str] = "llava"
    model_types: ClassVar[tuple[str, ...]] = ("llava",)

    def locate(self, model: nn.Module) -> Layout:
        """Find entry, decoder and vision modules."""
        entry = child(model, "model", "a LLaVA model") if hasattr(model, "lm_head") else model
        language = child(entry, "language_model", "LlavaModel")
        layers = _children(child(language, "layers", "the language model"))
        attentions = tuple(child(layer, "self_attn", "a decoder layer") for layer in layers)
        tower = child(entry, "vision_tower", "LlavaModel")
        config: Any = entry.config
        embeddings = [module for name, module in tower.named_modules() if name.endswith("embeddings")]
        has_cls = any(hasattr(module, "class_embedding") or hasattr(module, "cls_token") for module in embeddings)
        weight = next(language.parameters())
        return Layout(
            entry=entry,
            language_model=language,
            layers=layers,
            attentions=attentions,
            text_config=language.config,
            rotary=child(language, "rotary_emb", "the language model"),
            vision_attentions=_vision_attentions(tower),
            vision_config=tower.config,
            has_cls=has_cls,
            shape=self.shape(config, bytes_per_element=weight.element_size()),
        )

    def shape(self, config: Any, *, name: str = "", bytes_per_element: int | None = None) -> ModelShape:
        """Numbers of the text and vision configs; caches counted in the config's dtype unless told otherwise."""
        text, vision = config.text_config, config.vision_config
        heads = text.num_attention_heads
        if bytes_per_element is None:
            dtype = getattr(config, "dtype", None) or getattr(text, "dtype", None) or torch.float16
            dtype = getattr(torch, dtype) if isinstance(dtype, str) else dtype
            bytes_per_element = torch.empty(0, dtype=dtype).element_size()
        side = vision.image_size // vision.patch_size
        cls = 0 if "siglip" in vision.model_type else 1
        full = config.vision_feature_select_strategy == "full"
        return ModelShape(
            n_layers=text.num_hidden_layers,
            hidden_size=text.hidden_size,
            n_heads=heads,
            n_kv_heads=getattr(text, "num_key_value_heads", None) or heads,
            head_dim=getattr(text, "head_dim", None) or text.hidden_size // heads,
            intermediate_size=text.intermediate_size,
            vocab_size=text.vocab_size,
            bytes_per_element=bytes_per_element,
            ffn_matrices=3,
            vision=VisionShape(
                n_layers=vision.num_hidden_layers,
                hidden_size=vision.hidden_size,
                intermediate_size=vision.intermediate_size,
                n_tokens=side * side + cls,
                n_visual=side * side + (cls if full else 0),
                rows=side,
                cols=side,
            ),
            name=name,
        )

    def fixed_length(self, layout: Layout, modality: Modality) -> int | None:
        """Every image becomes the same number of tokens."""
        vision = layout.shape.vision
        return vision.n_visual if vision is not None and modality == "image" else None

    def places(self, layout: Layout, encoding: Encoding, item: int) -> Places:
        """One square plane in raster order; a [CLS] token in front of it lies nowhere."""
        vision = _vision(layout)
        extra = encoding.lengths[item] - vision.rows * vision.cols
        plane = Places.raster(vision.rows, vision.cols)
        return Places.joined([Places.nowhere(extra, structure=False), plane]) if extra else plane

    def arrange(self, layout: Layout, encoding: Encoding, rows: Sequence[Tensor]) -> Tensor:
        """[CLS] itself is not a visual token where the features leave it out."""
        n = encoding.lengths[0]
        return super().arrange(layout, encoding, [piece[..., piece.shape[-1] - n :] for piece in rows])


def _vision(layout: Layout) -> VisionShape:
    if layout.shape.vision is None:
        raise AdapterError(complaint("a LLaVA", "have a vision config", None, "load a complete model"))
    return layout.shape.vision


def _children(module: nn.Module) -> tuple[nn.Module, ...]:
    return tuple(module.children())


def _vision_attentions(tower: nn.Module) -> tuple[nn.Module, ...]:
    """The attention module of each encoder block, in order; empty where the tower is of an unknown make."""
    return tuple(
        module for name, module in tower.named_modules() if name.endswith("self_attn") and ".layers." in f".{name}"
    )
