"""The testbed's Qwen2.5-VL: transformers' own architecture at a toy size, and its training-time vision pass.

A patch is 4 pixels wide and a 2 x 2 merge makes a visual token of 8 pixels, the size of a token of the LLaVA
testbed. The tower knows no absolute position, as in the full-size model: where a token lies, the language model
reads from its M-RoPE position relative to the tokens before the picture.
"""

from functools import cache
from typing import Any, Final

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration
from transformers.models.qwen2_5_vl.configuration_qwen2_5_vl import Qwen2_5_VLTextConfig, Qwen2_5_VLVisionConfig
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import apply_rotary_pos_emb_vision
from transformers.vision_utils import get_vision_position_ids, get_vision_window_index

from tokentrim.testbed.scenes import PATCH as TOKEN, SQUARE, Canvas
from tokentrim.testbed.training.family import Encoded, TestbedFamily
from tokentrim.testbed.training.model import WIDTH, pixel_values
from tokentrim.testbed.training.view import View, flat_view
from tokentrim.testbed.vocabulary import BEGIN, END, IDS, IMAGE, PAD, USER, WORDS

MERGE: Final = 2
QWEN_PATCH: Final = TOKEN // MERGE  # pixels
FRAMES: Final = 2  # temporal patch size: a still picture is shown twice
WINDOW: Final = 32  # pixels
TOWER_WIDTH: Final = 64
TOWER_DEPTH: Final = 4
FULL_BLOCKS: Final = (1, 3)
# The plain vocabulary's image token is this family's image placeholder; three more tokens stand behind the words.
VISION_START: Final = "<|vision_start|>"
VISION_END: Final = "<|vision_end|>"
IMAGE_PAD: Final = "<|image_pad|>"
VIDEO_PAD: Final = "<|video_pad|>"
QWEN_IDS: Final = {
    IMAGE_PAD: IDS[IMAGE],
    VISION_START: len(WORDS),
    VISION_END: len(WORDS) + 1,
    VIDEO_PAD: len(WORDS) + 2,
}
VOCABULARY: Final = (len(WORDS) + 3 + 7) // 8 * 8
# Shares of the 16 rotary frequencies that tell time, row and column. The order is the architecture's, and it gives
# the highest frequencies to the first: with 16 frequencies down to 1/5600 and grids of 5 to 14 tokens, columns need
# the fourth highest to be told apart at all.
SECTIONS: Final = (1, 2, 13)


def build_config(layers: int) -> Qwen2_5_VLConfig:
    """Configuration with the given number of language-model layers."""
    vision = Qwen2_5_VLVisionConfig(
        depth=TOWER_DEPTH,
        hidden_size=TOWER_WIDTH,
        intermediate_size=3 * TOWER_WIDTH,
        num_heads=4,
        patch_size=QWEN_PATCH,
        spatial_merge_size=MERGE,
        temporal_patch_size=FRAMES,
        window_size=WINDOW,
        out_hidden_size=WIDTH,
        fullatt_block_indexes=list(FULL_BLOCKS),
        initializer_range=0.06,
        rope_parameters={"rope_type": "axial", "rope_theta": 100.0},
    )
    text = Qwen2_5_VLTextConfig(
        vocab_size=VOCABULARY,
        hidden_size=WIDTH,
        intermediate_size=2 * WIDTH,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=512,
        rms_norm_eps=1e-5,
        initializer_range=0.04,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0, "mrope_section": list(SECTIONS)},
        bos_token_id=IDS[BEGIN],
        eos_token_id=IDS[END],
        pad_token_id=IDS[PAD],
    )
    return Qwen2_5_VLConfig(
        vision_config=vision,
        text_config=text,
        image_token_id=QWEN_IDS[IMAGE_PAD],
        video_token_id=QWEN_IDS[VIDEO_PAD],
        vision_start_token_id=QWEN_IDS[VISION_START],
        vision_end_token_id=QWEN_IDS[VISION_END],
        tie_word_embeddings=False,
    )


class Qwen(TestbedFamily):
    """Qwen2.5-VL: as many visual tokens as the picture has 8 x 8 pixels."""

    name = "qwen2.5-vl"
    tower = "model.visual."
    feature_width = TOWER_WIDTH * MERGE * MERGE
    sees_place = False
    # Cells are 20 pixels wide on every canvas: a tower without absolute positions cannot know a picture's size.
    canvases = (
        SQUARE,
        Canvas(40, 80, rows=2),
        Canvas(80, 40, columns=2),
        Canvas(64, 80, rows=3),
        Canvas(80, 64, columns=3),
        Canvas(96, 96),
        Canvas(80, 112),
    )

    def build(self, layers: int) -> Any:
        """A Qwen2.5-VL with so many decoder layers."""
        return Qwen2_5_VLForConditionalGeneration(build_config(layers))

    def view(self, canvas: Canvas) -> View:
        """One grid, with M-RoPE positions."""
        return _view(canvas)

    def pixels(self, pictures: NDArray[np.uint8], view: View) -> Tensor:
        """Patches [batch, patches, 3 * 2 * 4 * 4], in the order of the image processor: token by token."""
        values = pixel_values(pictures)
        rows, columns = view.canvas.height // TOKEN, view.canvas.width // TOKEN
        parts = values.reshape(len(values), 3, rows, MERGE, QWEN_PATCH, columns, MERGE, QWEN_PATCH)
        parts = parts.permute(0, 2, 5, 3, 6, 1, 4, 7)
        twice = parts.unsqueeze(6).expand(-1, -1, -1, -1, -1, -1, FRAMES, -1, -1)
        return twice.reshape(len(values), rows * columns * MERGE * MERGE, -1)

    def encode(self, model: Any, pixels: Tensor, view: View) -> Encoded:
        """The tower's own modules on a batch of equal pictures; windows are a gather instead of a loop."""
        tower = model.model.visual
        batch, patches = pixels.shape[:2]
        hidden = tower.patch_embed(pixels.flatten(0, 1)).view(batch, patches, -1)
        index, real, back, places = _windows(view.canvas)
        cos, sin = tower.rotary_pos_emb(hidden, places)
        for number, block in enumerate(tower.blocks):
            attention = block.attn
            qkv = attention.qkv(block.norm1(hidden)).view(batch, patches, 3, attention.num_heads, -1)
            query, key = apply_rotary_pos_emb_vision(qkv[:, :, 0], qkv[:, :, 1], cos, sin)
            parts = (query, key, qkv[:, :, 2])
            if number in tower.fullatt_block_indexes:
                query, key, value = (p.transpose(1, 2) for p in parts)
                mixed = F.scaled_dot_product_attention(query, key, value).transpose(1, 2)
            else:
                query, key, value = (p[:, index].flatten(0, 1).transpose(1, 2) for p in parts)
                mask = real[:, None, None].expand(-1, 1, real.shape[1], -1).repeat(batch, 1, 1, 1)
                mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=mask).transpose(1, 2)
                mixed = mixed.reshape(batch, -1, *mixed.shape[2:])[:, back]
            hidden = hidden + attention.proj(mixed.reshape(batch, patches, -1))
            hidden = hidden + block.mlp(block.norm2(hidden))
        features = tower.merger.ln_q(hidden).view(batch, view.tokens, -1)
        return Encoded(tower.merger.mlp(features), features, None)


@cache
def _windows(canvas: Canvas) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Windows' patches [windows, size], padded; which are real; each patch's place among them; its row and column."""
    grid = torch.tensor([[1, canvas.height // QWEN_PATCH, canvas.width // QWEN_PATCH]])
    tokens, ends = get_vision_window_index(grid, MERGE, WINDOW, QWEN_PATCH)
    patches = (tokens[:, None] * MERGE**2 + torch.arange(MERGE**2)).flatten()
    lengths = ends.diff().tolist()
    size = max(lengths)
    index = torch.zeros(len(lengths), size, dtype=torch.int64)
    real = torch.zeros(len(lengths), size, dtype=torch.bool)
    back = torch.zeros(len(patches), dtype=torch.int64)
    for window, (part, length) in enumerate(zip(patches.split(lengths), lengths, strict=True)):
        index[window, :length], real[window, :length] = part, True
        back[part] = window * size + torch.arange(length)
    return index, real, back, get_vision_position_ids(grid, MERGE)


@cache
def _view(canvas: Canvas) -> View:
    rows, columns = canvas.height // TOKEN, canvas.width // TOKEN
    tokens = rows * columns
    start = (IDS[BEGIN], IDS[USER], QWEN_IDS[VISION_START])
    first = len(start)
    row, column = torch.arange(tokens) // columns, torch.arange(tokens) % columns
    picture = torch.stack([torch.full((tokens,), first), first + row, first + column])
    behind = first + max(rows, columns)
    prefix = torch.cat([torch.arange(first).expand(3, -1), picture, torch.full((3, 1), behind)], 1)
    return flat_view(canvas, start, (QWEN_IDS[VISION_END],), prefix)


QWEN = Qwen()
