"""Tiny models of the LLaVA families with random weights, built in memory, and prompts for them.

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
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    LlavaNextVideoConfig,
    LlavaNextVideoForConditionalGeneration,
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    MistralConfig,
    Qwen2Config,
    Qwen3Config,
    SiglipVisionConfig,
)

IMAGE = 99
"""Id of the image placeholder."""
VIDEO = 98
"""Id of the video placeholder, in families that take videos."""
PAD = 0
VOCAB = 100
PATCH = 4

Backbone = Literal["llama", "mistral", "qwen2", "qwen3"]
Tower = Literal["clip", "siglip"]

_TEXT = {"llama": LlamaConfig, "mistral": MistralConfig, "qwen2": Qwen2Config, "qwen3": Qwen3Config}
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
    config = LlavaConfig(
        text_config=text_config(backbone, kv_heads, layers, **text),
        vision_config=_vision_config(tower, side),
        image_token_id=IMAGE,
        image_seq_length=side * side,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default" if tower == "clip" else "full",
    )
    return finished(LlavaForConditionalGeneration, config, attention, dtype)


def tiny_llava_next(
    backbone: Backbone = "llama",
    tower: Tower = "clip",
    *,
    kv_heads: int = 2,
    layers: int = 6,
    side: int = 4,
    attention: str = "sdpa",
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    **text: Any,
) -> LlavaNextForConditionalGeneration:
    """A LLaVA-NeXT whose images are a thumbnail and up to four tiles of side x side patches."""
    torch.manual_seed(seed)
    config = LlavaNextConfig(
        text_config=text_config(backbone, kv_heads, layers, **text),
        vision_config=_vision_config(tower, side),
        image_token_id=IMAGE,
        image_grid_pinpoints=_pinpoints(side * PATCH, (1, 2), (2, 1), (2, 2), (3, 1), (1, 3)),
        vision_feature_layer=-2,
        vision_feature_select_strategy="default" if tower == "clip" else "full",
    )
    return finished(LlavaNextForConditionalGeneration, config, attention, dtype)


def tiny_llava_next_video(
    backbone: Backbone = "llama",
    *,
    kv_heads: int = 2,
    layers: int = 6,
    side: int = 4,
    pool: str = "average",
    attention: str = "sdpa",
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    **text: Any,
) -> LlavaNextVideoForConditionalGeneration:
    """A LLaVA-NeXT-Video: images like LLaVA-NeXT's, frames pooled two by two."""
    torch.manual_seed(seed)
    config = LlavaNextVideoConfig(
        text_config=text_config(backbone, kv_heads, layers, **text),
        vision_config=_vision_config("clip", side),
        image_token_id=IMAGE,
        video_token_id=VIDEO,
        image_grid_pinpoints=_pinpoints(side * PATCH, (1, 2), (2, 1), (2, 2), (3, 1), (1, 3)),
        spatial_pool_mode=pool,
    )
    return finished(LlavaNextVideoForConditionalGeneration, config, attention, dtype)


def tiny_llava_onevision(
    *,
    kv_heads: int = 2,
    layers: int = 6,
    side: int = 3,
    limit: int = 4,
    attention: str = "sdpa",
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    **text: Any,
) -> LlavaOnevisionForConditionalGeneration:
    """A LLaVA-OneVision: SigLIP, up to 3 x 3 tiles, planes shrunk to about ``limit`` tiles' tokens."""
    torch.manual_seed(seed)
    config = LlavaOnevisionConfig(
        text_config=text_config("qwen2", kv_heads, layers, **text),
        vision_config=_vision_config("siglip", side, vision_use_head=False),
        image_token_id=IMAGE,
        video_token_id=VIDEO,
        image_grid_pinpoints=_pinpoints(side * PATCH, *((h, w) for h in (1, 2, 3) for w in (1, 2, 3))),
        vision_aspect_ratio=f"anyres_max_{limit}",
    )
    return finished(LlavaOnevisionForConditionalGeneration, config, attention, dtype)


def text_config(backbone: Backbone, kv_heads: int, layers: int, **text: Any) -> Any:
    return _TEXT[backbone](
        intermediate_size=96,
        num_hidden_layers=layers,
        num_key_value_heads=kv_heads,
        initializer_range=0.2,
        max_position_embeddings=1024,
        pad_token_id=PAD,
        bos_token_id=1,
        eos_token_id=None,
        tie_word_embeddings=False,
        **{"vocab_size": VOCAB, "hidden_size": 64, "num_attention_heads": 4, **text},
    )


def _vision_config(tower: Tower, side: int, **more: Any) -> Any:
    return _VISION[tower](
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=2,
        image_size=side * PATCH,
        patch_size=PATCH,
        **more,
    )


def _pinpoints(tile: int, *grids: tuple[int, int]) -> list[list[int]]:
    return [[rows * tile, cols * tile] for rows, cols in grids]


def finished(kind: type[Any], config: Any, attention: str, dtype: torch.dtype) -> Any:
    """A frozen model of a config, its weights drawn wide, which never ends a text by itself."""
    config._attn_implementation = attention
    model = kind(config)
    _spread(model)
    if config.text_config.vocab_size > VOCAB:
        model.lm_head.weight.data[PAD] = 0.0  # generate takes padding in what it is handed for padding
    if config.text_config.vocab_size > VOCAB or hasattr(config, "image_grid_pinpoints"):
        model.lm_head.weight.data[VIDEO:] = 0.0  # an answer holds no placeholder
    model = model.to(dtype).eval()
    model.requires_grad_(False)
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = PAD
    return model


def _spread(model: Any) -> None:
    """Draw every matrix wide enough for attention with peaks, in the vision tower and the projector too."""
    for name, parameter in model.named_parameters():
        if parameter.dim() < 2:
            continue
        if "language_model" in name or "text_model" in name or "lm_head" in name:
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
