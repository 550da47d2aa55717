"""LLaVA 1.5 and its kin: one square grid of visual tokens per image, any vision tower, any decoder."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from tokentrim.adapter import Adapter, Layout
from tokentrim.errors import AdapterError, UnsupportedError, complaint
from tokentrim.shape import ModelShape, VisionShape
from tokentrim.sites import Grid


class LlavaAdapter(Adapter):
    """``LlavaForConditionalGeneration``: CLIP or SigLIP tower, two-layer projector, Llama, Mistral or Qwen2 decoder.

    Every image becomes the same number of visual tokens, a square grid in raster order (with
    ``vision_feature_select_strategy="full"`` on a tower with [CLS], that token comes first and has no place in it).
    """

    name: ClassVar[str] = "llava"
    model_types: ClassVar[tuple[str, ...]] = ("llava",)

    def locate(self, model: nn.Module) -> Layout:
        """Find entry, decoder and vision modules."""
        entry = _child(model, "model", "a LLaVA model") if hasattr(model, "lm_head") else model
        language = _child(entry, "language_model", "LlavaModel")
        layers = _children(_child(language, "layers", "the language model"))
        attentions = tuple(_child(layer, "self_attn", "a decoder layer") for layer in layers)
        tower = _child(entry, "vision_tower", "LlavaModel")
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
            rotary=_child(language, "rotary_emb", "the language model"),
            vision_tower=tower,
            projector=_child(entry, "multi_modal_projector", "LlavaModel"),
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

    def visual_mask(self, layout: Layout, arguments: Mapping[str, Any]) -> Tensor | None:
        """Positions of the image placeholder in ``input_ids``."""
        ids: Tensor | None = arguments.get("input_ids")
        if ids is None:
            raise UnsupportedError(
                complaint("a trimmed LLaVA", "be called with input_ids, which tell where the images are",
                          "inputs_embeds", "pass input_ids and pixel_values")
            )  # fmt: skip
        config: Any = layout.entry.config
        return ids == config.image_token_id

    def features(self, arguments: Mapping[str, Any]) -> list[Tensor] | None:
        """Features that ``generate`` (or the caller) encoded before this forward."""
        encoded = (arguments.get("mm_encoder_outputs") or {}).get("image")
        return None if encoded is None else list(encoded.pooler_output)

    def grid(self, layout: Layout, n_visual: tuple[int, ...], device: Any) -> Grid:
        """Raster order, image after image."""
        vision = layout.shape.vision
        if vision is None:
            raise AdapterError(complaint("a LLaVA", "have a vision config", None, "load a complete model"))
        ids = torch.arange(max(n_visual, default=0), device=device)
        extra = vision.n_visual - vision.rows * vision.cols  # 1 where [CLS] is among the visual tokens
        place = ids % vision.n_visual - extra
        row, col = place // vision.cols, place % vision.cols
        row, col = row.masked_fill(place < 0, -1), col.masked_fill(place < 0, -1)
        batch = len(n_visual)
        limit = torch.tensor(n_visual, device=device).unsqueeze(1)

        def spread(values: Tensor) -> Tensor:
            return values.expand(batch, -1).masked_fill(ids >= limit, -1)

        image = spread(ids // vision.n_visual)
        return Grid(image, spread(torch.zeros_like(ids)), spread(row), spread(col), vision.rows, vision.cols)


def _child(module: nn.Module, name: str, whose: str) -> Any:
    found = getattr(module, name, None)
    if found is None:
        raise AdapterError(
            complaint(f"{whose} ({type(module).__name__})", f"have a module {name!r}",
                      sorted(child for child, _ in module.named_children()),
                      "its layout has drifted from the one this adapter knows; please report the version")
        )  # fmt: skip
    return found


def _children(module: nn.Module) -> tuple[nn.Module, ...]:
    return tuple(module.children())


def _vision_attentions(tower: nn.Module) -> tuple[nn.Module, ...]:
    """The attention module of each encoder block, in order; empty where the tower is of an unknown make."""
    return tuple(
        module for name, module in tower.named_modules() if name.endswith("self_attn") and ".layers." in f".{name}"
    )
