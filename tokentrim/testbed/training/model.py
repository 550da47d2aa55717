"""The testbed's network: transformers' own LLaVA (CLIP tower, projector, Llama) at a toy size."""

from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

from tokentrim.testbed.scenes import IMAGE_SIZE, PATCH, TOKENS
from tokentrim.testbed.vocabulary import BEGIN, COLORS, END, GLYPHS, IDS, IMAGE, PAD, WORDS

VISION_WIDTH: Final = 96
WIDTH: Final = 128
PIXEL_MEAN: Final = 0.5
PIXEL_STD: Final = 0.25


def build_config(layers: int) -> LlavaConfig:
    """Configuration with the given number of language-model layers."""
    vision = CLIPVisionConfig(
        hidden_size=VISION_WIDTH,
        intermediate_size=3 * VISION_WIDTH,
        num_hidden_layers=4,
        num_attention_heads=4,
        image_size=IMAGE_SIZE,
        patch_size=PATCH,
        projection_dim=64,
        hidden_act="gelu",
    )
    text = LlamaConfig(
        vocab_size=(len(WORDS) + 7) // 8 * 8,
        hidden_size=WIDTH,
        intermediate_size=2 * WIDTH,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=512,
        rms_norm_eps=1e-5,
        initializer_range=0.04,
        tie_word_embeddings=False,
        bos_token_id=IDS[BEGIN],
        eos_token_id=IDS[END],
        pad_token_id=IDS[PAD],
    )
    return LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=IDS[IMAGE],
        projector_hidden_act="gelu",
        vision_feature_select_strategy="default",
        vision_feature_layer=-2,
        image_seq_length=TOKENS,
        tie_word_embeddings=False,
    )


def build_model(layers: int) -> LlavaForConditionalGeneration:
    """Untrained model; initial weights follow torch's global seed."""
    return build_from(build_config(layers))


def build_from(config: LlavaConfig) -> LlavaForConditionalGeneration:
    """Untrained model of a configuration, with initial weights from which look-ups are soon learnt."""
    model = LlavaForConditionalGeneration(config)
    with torch.no_grad():
        # Transformers' small initial positions leave "which row, which column" unreadable for hundreds of
        # steps.
        model.model.vision_tower.embeddings.position_embedding.weight.mul_(5)
        for layer in model.model.language_model.layers:
            # Keys start equal to queries and outputs as the transpose of values: a token then attends to its
            # like and copies it, which is the look-up that every question needs. It shortens the first
            # plateau.
            attention = layer.self_attn
            attention.q_proj.weight.mul_(1.3)
            attention.k_proj.weight.copy_(attention.q_proj.weight)
            attention.o_proj.weight.copy_(attention.v_proj.weight.T)
    return model


class AuxiliaryHeads(nn.Module):
    """Linear read-outs that exist in training only: what each patch shows, and what the picture holds."""

    def __init__(self, width: int = VISION_WIDTH) -> None:
        super().__init__()
        self.glyph = nn.Linear(width, len(GLYPHS) + 1)  # the last class is "not the centre of an object"
        self.color = nn.Linear(width, len(COLORS) + 1)
        self.position = nn.Linear(width, 8)  # row, then column, of the cell
        self.presence = nn.Linear(VISION_WIDTH, len(GLYPHS) + len(COLORS))


def pixel_values(images: NDArray[np.uint8]) -> Tensor:
    """Normalised model input [batch, 3, height, width] of pictures [batch, height, width, 3]."""
    return (torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255 - PIXEL_MEAN) / PIXEL_STD


def deepen(state: dict[str, Tensor], places: tuple[int, ...], layers: int) -> dict[str, Tensor]:
    """Weights of a deeper model that computes the same function.

    Trained layer i goes to `places[i]`. Every other place gets a copy of the trained layer below it whose
    output projections are zero: an identity at first, from which training can start at once.
    """
    prefix = "model.language_model.layers."
    deep = {name: value.clone() for name, value in state.items() if not name.startswith(prefix)}
    for layer in range(layers):
        source = max(i for i, place in enumerate(places) if place <= layer)
        start = f"{prefix}{source}."
        for name, value in state.items():
            if not name.startswith(start):
                continue
            silent = places[source] != layer and ("o_proj" in name or "down_proj" in name)
            deep[f"{prefix}{layer}.{name[len(start) :]}"] = torch.zeros_like(value) if silent else value.clone()
    return deep
