"""A tower as vLLM serves it, made of modules of transformers: each block hands queries and keys to an attention core.

So the bridge is tested where vLLM is not installed: on the same weights, with the same calls.
"""

import torch
from torch import nn

from tokentrim.serve.vllm.trimmer import Trimmer


class Core(nn.Module):
    def __init__(self, heads, scale):
        super().__init__()
        self.num_heads, self.scale = heads, scale

    def forward(self, query, key, value):
        q, k, v = (t.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for t in (query, key, value))
        out = nn.functional.scaled_dot_product_attention(q, k, v, scale=self.scale)
        return out.transpose(1, 2).flatten(2)


class ServedLlava:
    """CLIP up to the block of the features, the projector behind it, and a trimmer around both."""

    def __init__(self, model):
        config, inner = model.config, model.model
        self.vision = getattr(inner.vision_tower, "vision_model", inner.vision_tower)
        blocks = list(self.vision.encoder.layers)
        self.blocks = blocks[: len(blocks) + 1 + config.vision_feature_layer]
        first = self.blocks[0].self_attn
        self.cores = [Core(first.num_heads, first.scale) for _ in self.blocks]
        self.projector = inner.multi_modal_projector
        self.trimmer = Trimmer.of(config, self.cores, self.projector)

    def encode(self, pixel_values):
        with torch.no_grad():
            hidden = self.vision.pre_layrnorm(self.vision.embeddings(pixel_values))
            for block, core in zip(self.blocks, self.cores, strict=True):
                normed, own = block.layer_norm1(hidden), block.self_attn
                hidden = hidden + own.out_proj(core(own.q_proj(normed), own.k_proj(normed), own.v_proj(normed)))
                hidden = hidden + block.mlp(block.layer_norm2(hidden))
            return self.projector(hidden[:, 1:])
