"""Gemma 3 with random weights, windows that hold every prompt, and prompts of pictures of its one size."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import transformers
from torch import Tensor

from tests import models
from tests.families import Encoded, Family, Picture, noise

SIDE, MERGE = 4, 2
"""Visual tokens along each side of an image, and patches along each side of a token."""
PIXELS = SIDE * MERGE * models.PATCH
BEGIN, END = models.VOCAB, models.VOCAB + 1
KINDS = ("sliding_attention", "sliding_attention", "full_attention")
WINDOW = 128


class Gemma3(Family):
    """Images of 4 x 4 tokens between two marks; a prompt says which of its tokens are a picture's."""

    name = "gemma3"
    row = (3, "image", 5)
    ragged = ((3, "image", 5), (9,), (2, "image", 4, "image", 7))

    def build(self, *, attention: str = "sdpa", seed: int = 0, layers: int = 6, **options: Any) -> Any:
        torch.manual_seed(seed)
        text = {
            "vocab_size": END + 1, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": layers,
            "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "query_pre_attn_scalar": 16,
            "layer_types": [KINDS[layer % len(KINDS)] for layer in range(layers)], "sliding_window": WINDOW,
            "pad_token_id": models.PAD, "bos_token_id": 1, "eos_token_id": None,
            "rope_parameters": {
                "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
                "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 10000.0},
            },
            **options,
        }  # fmt: skip
        vision = {
            "model_type": "siglip_vision_model", "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3,
            "num_attention_heads": 2, "image_size": PIXELS, "patch_size": models.PATCH, "vision_use_head": False,
        }  # fmt: skip
        config = transformers.Gemma3Config(
            text_config=text, vision_config=vision, mm_tokens_per_image=SIDE**2, image_token_index=models.IMAGE,
            boi_token_index=BEGIN, eoi_token_index=END, tie_word_embeddings=False,
        )  # fmt: skip
        return models.finished(transformers.Gemma3ForConditionalGeneration, config, attention, torch.float32)

    def encode(self, model: Any, pictures: Sequence[Picture], seeds: Sequence[int], together: Sequence[int]) -> Encoded:
        pixels = torch.stack([noise(seed, 3, PIXELS, PIXELS) for seed in seeds])
        return Encoded({"pixel_values": pixels.to(model.dtype)}, (SIDE**2,) * len(pictures))

    def wrap(self, placeholders: Tensor, picture: Picture) -> Tensor:
        return torch.cat([torch.tensor([BEGIN]), placeholders, torch.tensor([END])])

    def finish(self, inputs: dict[str, Any]) -> dict[str, Any]:
        return {**inputs, "token_type_ids": (inputs["input_ids"] == models.IMAGE).long()}
