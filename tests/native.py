"""Mistral3 and GLM-4.1V with random weights, and prompts of images (and videos) of any size for them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import transformers
from torch import Tensor

from tests import models
from tests.families import Encoded, Family, Picture, noise

MERGE = 2
UNIT = MERGE * models.PATCH
"""Pixels along each side of a visual token."""
BREAK, END, START = range(models.VOCAB, models.VOCAB + 3)
_VOCAB = START + 1
_TEMPORAL = 2


class Mistral3(Family):
    """Images at their own resolution, a break behind every row of tokens."""

    name = "mistral3"
    row = (3, "image:24x32", 5)
    ragged = ((3, "image:24x32", 5), (9,), (2, "image:16x24", 4, "image:32x16", 7))

    def build(self, *, attention: str = "sdpa", seed: int = 0, layers: int = 6, **options: Any) -> Any:
        torch.manual_seed(seed)
        text = models.text_config("mistral", 2, layers, **{"vocab_size": _VOCAB, **options})
        vision = {
            "model_type": "pixtral", "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3,
            "num_attention_heads": 2, "head_dim": 16, "image_size": 64, "patch_size": models.PATCH,
        }  # fmt: skip
        config = transformers.Mistral3Config(
            text_config=text.to_dict(), vision_config=vision, image_token_index=models.IMAGE, spatial_merge_size=MERGE,
            tie_word_embeddings=False,
        )  # fmt: skip
        return models.finished(transformers.Mistral3ForConditionalGeneration, config, attention, torch.float32)

    def encode(self, model: Any, pictures: Sequence[Picture], seeds: Sequence[int], together: Sequence[int]) -> Encoded:
        sizes = [picture.size or (16, 16) for picture in pictures]
        high, wide = (max(size[axis] for size in sizes) for axis in (0, 1))
        padded = [
            torch.nn.functional.pad(noise(seed, 3, *size), (0, wide - size[1], 0, high - size[0]))
            for seed, size in zip(seeds, sizes, strict=True)
        ]
        inputs = {"pixel_values": torch.stack(padded).to(model.dtype), "image_sizes": torch.tensor(sizes)}
        return Encoded(inputs, tuple((height // UNIT) * (width // UNIT) for height, width in sizes))

    def wrap(self, placeholders: Tensor, picture: Picture) -> Tensor:
        rows = (picture.size or (16, 16))[0] // UNIT
        lines = placeholders.view(rows, -1)
        marks = torch.full((rows, 1), BREAK)
        marks[-1] = END
        return torch.cat([lines, marks], dim=1).flatten()


class Glm4v(Family):
    """Images and videos at their own resolution, M-RoPE; a video's frames are stamped, and their placeholders images'.

    A prompt holds images or videos: the model cannot take both.
    """

    name = "glm4v"
    row = (3, "image:24x32", 5)
    ragged = ((3, "image:24x32", 5), (9,), (2, "image:16x24", 4, "image:32x16", 7))
    video_id = models.IMAGE

    def build(self, *, attention: str = "sdpa", seed: int = 0, layers: int = 6, **options: Any) -> Any:
        torch.manual_seed(seed)
        text = {
            "vocab_size": _VOCAB, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": layers,
            "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 1024,
            "pad_token_id": models.PAD, "bos_token_id": 1, "eos_token_id": None, "head_dim": 16,
            "rope_parameters": {
                "rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5, "mrope_section": [1, 1, 2],
            },
            **options,
        }  # fmt: skip
        vision = {
            "depth": 3, "hidden_size": 32, "num_heads": 2, "image_size": 32, "patch_size": models.PATCH,
            "spatial_merge_size": MERGE, "temporal_patch_size": _TEMPORAL, "out_hidden_size": 64,
            "intermediate_size": 48,
        }  # fmt: skip
        config = transformers.Glm4vConfig(
            text_config=text, vision_config=vision, image_token_id=models.IMAGE, video_token_id=models.VIDEO,
            image_start_token_id=START, image_end_token_id=END, video_start_token_id=BREAK, video_end_token_id=BREAK,
        )  # fmt: skip
        return models.finished(transformers.Glm4vForConditionalGeneration, config, attention, torch.float32)

    def encode(self, model: Any, pictures: Sequence[Picture], seeds: Sequence[int], together: Sequence[int]) -> Encoded:
        grids = [(picture.frames, *(n // models.PATCH for n in picture.size or (16, 16))) for picture in pictures]
        width = 3 * _TEMPORAL * models.PATCH**2
        pixels = torch.cat([noise(seed, t * h * w, width) for seed, (t, h, w) in zip(seeds, grids, strict=True)])
        modality = pictures[0].modality
        name = "pixel_values" if modality == "image" else "pixel_values_videos"
        inputs = {name: pixels.to(model.dtype), f"{modality}_grid_thw": torch.tensor(grids)}
        return Encoded(inputs, tuple(t * h * w // MERGE**2 for t, h, w in grids))

    def wrap(self, placeholders: Tensor, picture: Picture) -> Tensor:
        frames = placeholders.view(picture.frames, -1)
        start, end = (torch.full((picture.frames, 1), token) for token in (START, END))
        return torch.cat([start, frames, end], dim=1).flatten()

    def finish(self, inputs: dict[str, Any]) -> dict[str, Any]:
        kind = 2 if "pixel_values_videos" in inputs else 1
        return {**inputs, "mm_token_type_ids": kind * (inputs["input_ids"] == models.IMAGE).long()}

    def positions(self, model: Any, inputs: dict[str, Any], extra: int) -> Tensor:
        names = ("input_ids", "mm_token_type_ids", "image_grid_thw", "video_grid_thw")
        found, _ = model.model.get_rope_index(**{name: inputs[name] for name in names if name in inputs})
        behind = found[:, 0].max() + 1 + torch.arange(extra)
        return torch.cat([found[:, 0], behind.expand(3, -1)], dim=1)
