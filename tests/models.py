"""Tiny LLaVAs with random weights, built in memory, and prompts for them.

Weights are drawn wider than a real initialisation: attention then has peaks, and logits differ from token to token.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    MistralConfig,
    Qwen2Config,
    SiglipVisionConfig,
)

IMAGE = 99
"""Id of the image placeholder."""
PAD = 0
VOCAB = 100
PATCH = 4

Backbone = Literal["llama", "mistral", "qwen2"]
Tower = Literal["clip", "siglip"]

_TEXT = {"llama": LlamaConfig, "mistral": MistralConfig, "qwen2": Qwen2Config}
_VISION = {"clip": CLIPVisionConfig, "siglip": SiglipVisionConfig}


def tiny_llava(
    backbone: Backbone = "llama",
    tower: Tower = "clip",
    *,
    kv_heads: int = 2,
    layers: int = 6,
    side: int = 8,
    attention: str = "sdpa",
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    **text: Any,
) -> LlavaForConditionalGeneration:
    """A LLaVA with ``layers`` decoder layers of width 64, 4 heads, and side x side visual tokens per image."""
    torch.manual_seed(seed)
    text_config = _TEXT[backbone](
        vocab_size=VOCAB,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=kv_heads,
        initializer_range=0.2,
        max_position_embeddings=1024,
        pad_token_id=PAD,
        bos_token_id=1,
        eos_token_id=None,
        tie_word_embeddings=False,
        **text,
    )
    vision_config = _VISION[tower](
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=2,
        image_size=side * PATCH,
        patch_size=PATCH,
    )
    config = LlavaConfig(
        text_config=text_config,
        vision_config=vision_config,
        image_token_id=IMAGE,
        image_seq_length=side * side,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default" if tower == "clip" else "full",
    )
    config._attn_implementation = attention
    model = LlavaForConditionalGeneration(config)
    _spread(model)
    model = model.to(dtype).eval()
    model.requires_grad_(False)
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = PAD
    return model


def _spread(model: LlavaForConditionalGeneration) -> None:
    """Draw every matrix wide enough for attention with peaks, in the vision tower and the projector too."""
    for name, parameter in model.named_parameters():
        if parameter.dim() < 2:
            continue
        if "language_model" in name or "lm_head" in name:
            torch.nn.init.normal_(parameter, std=1.0 if "embed_tokens" in name else 0.2)
        else:
            torch.nn.init.normal_(parameter, std=1.5 * parameter[0].numel() ** -0.5)


def images(count: int, model: LlavaForConditionalGeneration, seed: int = 0) -> Tensor:
    """[count, 3, S, S]: noise images, each other than all others."""
    size = model.config.vision_config.image_size
    generator = torch.Generator().manual_seed(1000 + seed)
    return torch.randn(count, 3, size, size, generator=generator).to(model.dtype)


def row(model: LlavaForConditionalGeneration, layout: Sequence[int | str], seed: int = 0) -> Tensor:
    """[T]: token ids; a number in ``layout`` stands for so many text tokens, ``"image"`` for one whole image."""
    side = model.config.vision_config.image_size // PATCH
    generator = torch.Generator().manual_seed(seed)
    parts = [
        torch.full((side * side,), IMAGE)
        if part == "image"
        else torch.randint(2, IMAGE, (int(part),), generator=generator)
        for part in layout
    ]
    return torch.cat(parts)


def prompt(
    model: LlavaForConditionalGeneration,
    *layouts: Sequence[int | str],
    seed: int = 0,
    padding: Literal["left", "right"] = "left",
) -> dict[str, Tensor]:
    """A batch: one row per layout, padded; no attention mask where nothing is padded."""
    rows = [row(model, layout, seed + index) for index, layout in enumerate(layouts)]
    length = max(len(ids) for ids in rows)
    ids = torch.full((len(rows), length), PAD)
    mask = torch.zeros(len(rows), length, dtype=torch.long)
    for index, tokens in enumerate(rows):
        where = slice(length - len(tokens), length) if padding == "left" else slice(0, len(tokens))
        ids[index, where], mask[index, where] = tokens, 1
    found = {"input_ids": ids}
    if not bool(mask.all()):
        found["attention_mask"] = mask
    count = sum(part == "image" for layout in layouts for part in layout)
    if count:
        found["pixel_values"] = images(count, model, seed)
    return found


def alone(inputs: dict[str, Tensor], index: int, tokens_per_image: int) -> dict[str, Tensor]:
    """Row ``index`` of a batch as a prompt of its own, without padding."""
    ids = inputs["input_ids"]
    counts = [int((line == IMAGE).sum()) // tokens_per_image for line in ids]
    tokens = ids[index]
    if "attention_mask" in inputs:
        tokens = tokens[inputs["attention_mask"][index].bool()]
    found = {"input_ids": tokens.unsqueeze(0)}
    if counts[index]:
        first = sum(counts[:index])
        found["pixel_values"] = inputs["pixel_values"][first : first + counts[index]]
    return found
