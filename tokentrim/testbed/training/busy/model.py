"""The busy pictures' network: a LLaVA at a toy size, and read-outs that exist in training only."""

from typing import Any, Final

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, CLIPVisionConfig, LlamaConfig, LlavaConfig

from tokentrim.testbed.busy.scenes import GRID, PATCH, SIZE
from tokentrim.testbed.busy.vocabulary import GROUNDS, IDS, LARGE, LETTERS, SMALL, WORDS
from tokentrim.testbed.scenes import Canvas
from tokentrim.testbed.training.family import TestbedLlava
from tokentrim.testbed.training.model import build_from
from tokentrim.testbed.training.view import View, flat_view
from tokentrim.testbed.vocabulary import BEGIN, COLORS, DIGITS, END, IMAGE, PAD, USER

WIDTH: Final = 128
TOKENS: Final = GRID * GRID
CANVAS: Final = Canvas(SIZE, SIZE, cell_height=SIZE // 4, cell_width=SIZE // 4)
VIEW: Final = flat_view(CANVAS, (IDS[BEGIN], IDS[USER]), (), torch.arange(2 + TOKENS)[None])
# What a patch holds in small print, by class; the last class is a mark, class "none" follows.
PRINT: Final = (*DIGITS, *LETTERS, *SMALL, "mark")
NO_PRINT: Final = len(PRINT)
AREAS: Final = (*LARGE, *GROUNDS)
CAPTION_WORDS: Final = len(LARGE) * len(COLORS) + len(GROUNDS)
_SHARPER: Final = 1.54  # of queries and of keys
_JOINT: Final = 64  # width of the space in which pictures and captions meet


class BusyLlava(TestbedLlava):
    """LLaVA 1.5 with 256 visual tokens."""

    name = "busy"
    feature_width = WIDTH
    canvases = (CANVAS,)
    words = IDS

    def build(self, layers: int) -> Any:
        """A LLaVA with so many decoder layers."""
        vision = CLIPVisionConfig(
            hidden_size=WIDTH,
            intermediate_size=5 * WIDTH // 2,
            num_hidden_layers=5,
            num_attention_heads=4,
            image_size=SIZE,
            patch_size=PATCH,
            projection_dim=_JOINT,
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
        model = build_from(
            LlavaConfig(
                vision_config=vision,
                text_config=text,
                image_token_index=IDS[IMAGE],
                projector_hidden_act="gelu",
                vision_feature_select_strategy="default",
                vision_feature_layer=-2,
                image_seq_length=TOKENS,
                tie_word_embeddings=False,
            )
        )
        with torch.no_grad():
            for layer in model.model.language_model.layers:  # of more tokens than in the older pictures one stands out
                layer.self_attn.q_proj.weight.mul_(_SHARPER)
                layer.self_attn.k_proj.weight.mul_(_SHARPER)
        return model

    def view(self, canvas: Canvas) -> View:
        """The only view; ValueError for any other canvas."""
        if (canvas.height, canvas.width) != (SIZE, SIZE):
            raise ValueError(f"canvas of the busy testbed must be {SIZE} x {SIZE}; got {canvas}")
        return VIEW


BUSY = BusyLlava()


class BusyHeads(nn.Module):
    """Linear read-outs of every patch, and the caption's side of the contrastive loss."""

    def __init__(self) -> None:
        super().__init__()
        self.print = nn.Linear(WIDTH, NO_PRINT + 1)
        self.color = nn.Linear(WIDTH, len(COLORS))  # of small print; asked where there is some
        self.area = nn.Linear(WIDTH, len(AREAS))
        self.area_color = nn.Linear(WIDTH, len(COLORS))
        self.place = nn.Linear(WIDTH, 8)  # row, then column, of 4 x 4 places
        self.picture = nn.Linear(WIDTH, _JOINT)
        self.caption = nn.Linear(CAPTION_WORDS, _JOINT)
        self.scale = nn.Parameter(torch.tensor(2.0))  # log of the similarity's scale

    def contrast(self, pooled: Tensor, captions: Tensor) -> Tensor:
        """CLIP's loss of a batch: pooled [batch, width], captions [batch, words]."""
        pictures = nn.functional.normalize(self.picture(pooled), dim=-1)
        texts = nn.functional.normalize(self.caption(captions), dim=-1)
        similar = self.scale.exp().clamp(max=50) * pictures @ texts.T
        right = torch.arange(len(similar))
        cross = nn.functional.cross_entropy
        return (cross(similar, right) + cross(similar.T, right)) / 2


def float_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None = None,
    scaling: float | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Attention in float32 while all else is bfloat16.

    On a CPU with bfloat16 matrix units a training step takes a third less time so: the backward pass of the fused
    kernel is slower in bfloat16 than in float32.
    """
    del module
    mask = None if attention_mask is None else attention_mask.float()
    with torch.autocast("cpu", enabled=False):
        inputs = (x.float() for x in (query, key, value))
        mixed = nn.functional.scaled_dot_product_attention(*inputs, attn_mask=mask, scale=scaling)
    return mixed.transpose(1, 2).contiguous(), None


FLOAT_ATTENTION: Final = "busy_float"
AttentionInterface.register(FLOAT_ATTENTION, float_attention)
