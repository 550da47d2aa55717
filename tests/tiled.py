"""SmolVLM, Idefics3 and InternVL with random weights: images of as many tiles as a layout names, ``image:2x3``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
import transformers
from torch import Tensor

from tests import models
from tests.families import Encoded, Family, Picture, noise

MERGE, SIDE = 2, 2
"""Patches along each side of a visual token, and visual tokens along each side of a piece."""
EACH = SIDE**2
PIXELS = SIDE * MERGE * models.PATCH
EDGE, GLOBAL, LINE, LINES, TAG = range(models.VOCAB, models.VOCAB + 5)
_MOST = 4  # tiles along each side of an image
_VOCAB = TAG + _MOST**2


def _tower(**more: Any) -> dict[str, Any]:
    return {
        "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 2,
        "image_size": PIXELS, "patch_size": models.PATCH, **more,
    }  # fmt: skip


def tiles_of(picture: Picture) -> tuple[int, int]:
    """Rows and columns of tiles; (0, 0) for an image of one piece."""
    return picture.size or (0, 0)


def pieces_of(picture: Picture) -> int:
    """Tiles and a thumbnail."""
    rows, cols = tiles_of(picture)
    return rows * cols + 1


class SmolVLM(Family):
    """Tagged tiles in rows, and a thumbnail; rows of a batch are padded with black pieces."""

    name = "smolvlm"
    row = (3, "image:2x3", 5)
    ragged = ((3, "image:2x3", 5), (9,), (2, "image:1x2", 1, "image", "image:3x1", 7))
    classes: ClassVar[tuple[str, str]] = ("SmolVLMConfig", "SmolVLMForConditionalGeneration")

    def build(self, *, attention: str = "sdpa", seed: int = 0, layers: int = 6, **options: Any) -> Any:
        torch.manual_seed(seed)
        config_class, model_class = (getattr(transformers, name) for name in self.classes)
        config = config_class(
            text_config=models.text_config("llama", 2, layers, **{"vocab_size": _VOCAB, **options}).to_dict(),
            vision_config=_tower(), image_token_id=models.IMAGE, scale_factor=MERGE, tie_word_embeddings=False,
        )  # fmt: skip
        return models.finished(model_class, config, attention, torch.float32)

    def encode(self, model: Any, pictures: Sequence[Picture], seeds: Sequence[int], together: Sequence[int]) -> Encoded:
        made = [
            noise(seed, pieces_of(picture), 3, PIXELS, PIXELS) for seed, picture in zip(seeds, pictures, strict=True)
        ]
        left = list(made)
        rows = [torch.cat([left.pop(0) for _ in range(number)]) for number in together]
        most = max(len(row) for row in rows)
        padded = [torch.cat([row, torch.zeros(most - len(row), *row.shape[1:])]) for row in rows]
        inputs = {"pixel_values": torch.stack(padded).to(model.dtype)}
        return Encoded(inputs, tuple(len(piece) * EACH for piece in made))

    def wrap(self, placeholders: Tensor, picture: Picture) -> Tensor:
        rows, cols = tiles_of(picture)
        piece, parts = placeholders[:EACH], list[Tensor]()
        for row in range(rows):
            for col in range(cols):
                parts += [torch.tensor([EDGE, TAG + row * _MOST + col]), piece]
            parts.append(torch.tensor([LINE if row < rows - 1 else LINES]))
        return torch.cat([*parts, torch.tensor([EDGE, GLOBAL]), piece, torch.tensor([EDGE])])


class Idefics3(SmolVLM):
    """The same under other names."""

    name = "idefics3"
    classes = ("Idefics3Config", "Idefics3ForConditionalGeneration")


class InternVL(Family):
    """Tiles and a thumbnail in one run; a thumbnail looks like its tiles put together."""

    name = "internvl"
    row = (3, "image:2x3", 5)
    ragged = ((3, "image:2x3", 5), (9,), (2, "image:1x2", 1, "image", "image:3x1", 7))

    def build(
        self, *, attention: str = "sdpa", seed: int = 0, layers: int = 6, backbone: str = "qwen2", **options: Any
    ) -> Any:
        torch.manual_seed(seed)
        text = models.text_config(backbone, 2, layers, **{"vocab_size": _VOCAB, **options})  # type: ignore[arg-type]
        config = transformers.InternVLConfig(
            text_config=text.to_dict(), vision_config=_tower(), image_token_id=models.IMAGE, image_seq_length=EACH,
            tie_word_embeddings=False,
        )  # fmt: skip
        return models.finished(transformers.InternVLForConditionalGeneration, config, attention, torch.float32)

    def encode(self, model: Any, pictures: Sequence[Picture], seeds: Sequence[int], together: Sequence[int]) -> Encoded:
        made: list[Tensor] = []
        for seed, picture in zip(seeds, pictures, strict=True):
            rows, cols = (max(n, 1) for n in tiles_of(picture))
            whole = noise(seed, 3, rows * PIXELS, cols * PIXELS)
            tiles = whole.unflatten(2, (cols, PIXELS)).unflatten(1, (rows, PIXELS)).permute(1, 3, 0, 2, 4).flatten(0, 1)
            thumbnail = torch.nn.functional.interpolate(whole[None], (PIXELS, PIXELS), mode="area")
            made.append(torch.cat([tiles, thumbnail]) if len(tiles) > 1 else tiles)
        inputs = {"pixel_values": torch.cat(made).to(model.dtype)}
        return Encoded(inputs, tuple(len(pieces) * EACH for pieces in made))

    def wrap(self, placeholders: Tensor, picture: Picture) -> Tensor:
        return torch.cat([torch.tensor([EDGE]), placeholders, torch.tensor([LINE])])
