"""Model families with random weights, and prompts of pictures of many sizes for them, behind one interface.

A layout is one row of a prompt: a number stands for so many text tokens, ``"image"`` for an image of the family's
own size, ``"image:20x40"`` for one of 20 by 40 pixels, ``"video:3"`` for a video of three frames (``"video:3:16x24"``
where the family takes videos of any size). Text and pictures are functions of the seed and of their place in the
batch, so a row alone can be made again.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from tests import models

Layout = Sequence[int | str]


@dataclass(frozen=True)
class Picture:
    """One image or video of a layout; ``size`` is None where the family's own is meant."""

    modality: Literal["image", "video"]
    size: tuple[int, int] | None = None
    frames: int = 1

    @classmethod
    def parse(cls, text: str) -> Picture:
        """``image``, ``image:HxW``, ``video:F`` or ``video:F:HxW``."""
        modality, *rest = text.split(":")
        frames = int(rest.pop(0)) if modality == "video" else 1
        size = tuple(int(n) for n in rest[0].split("x")) if rest else None
        return cls(modality, size, frames)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Encoded:
    """Pictures of one modality as a model takes them: its inputs, and the placeholders of each picture."""

    inputs: dict[str, Any]
    lengths: tuple[int, ...]


class Family(ABC):
    """One model family: a tiny model, prompts for it, and what the slow reference must know of it.

    Attributes:
        name: of the family.
        row: a layout of one row, the usual one.
        ragged: layouts of a batch whose rows differ in text, pictures and their sizes.
        image_id, video_id: placeholder ids; video_id is None where the family takes no videos.
    """

    name: ClassVar[str]
    row: ClassVar[Layout]
    ragged: ClassVar[tuple[Layout, ...]]
    image_id: ClassVar[int] = models.IMAGE
    video_id: ClassVar[int | None] = None

    @abstractmethod
    def build(self, **options: Any) -> Any:
        """A fresh model; ``attention`` and ``seed`` are known to every family."""

    @abstractmethod
    def encode(self, model: Any, pictures: Sequence[Picture], seeds: Sequence[int], together: Sequence[int]) -> Encoded:
        """Pictures of one modality, >= 1, with the contents of their seeds.

        ``together`` gives the number of images of each row that has some, in order.
        """

    def structure(self, model: Any, inputs: dict[str, Any]) -> Tensor:
        """bool [B, T]: placeholders that are no visual tokens, told from the features themselves."""
        return torch.zeros_like(inputs["input_ids"], dtype=torch.bool)

    def positions(self, model: Any, inputs: dict[str, Any], extra: int) -> Tensor:
        """Position ids of a prompt of one unpadded row and ``extra`` new tokens: [T] or, with axes, [A, T]."""
        return torch.arange(inputs["input_ids"].shape[1] + extra)

    def deepstack(self, model: Any, inputs: dict[str, Any]) -> list[Tensor]:
        """Per layer 0, 1, ... [T, D] that the untouched model adds behind it, for a prompt of one row."""
        return []

    def model(self, **options: Any) -> Any:
        """A shared model: nobody changes it."""
        return _built(self, **options)

    # ------------------------------------------------------------------ prompts

    def prompt(
        self, model: Any, *layouts: Layout, seed: int = 0, padding: Literal["left", "right"] = "left"
    ) -> dict[str, Any]:
        """A batch, one row per layout, padded; no attention mask where nothing is padded."""
        return self._prompt(model, list(layouts), seed, padding, range(len(layouts)))

    def alone(self, model: Any, layouts: Sequence[Layout], row: int, *, seed: int = 0) -> dict[str, Any]:
        """Row ``row`` of the batch of ``layouts`` as a prompt of its own, without padding."""
        return self._prompt(model, layouts, seed, "left", (row,))

    def placeholders(self, inputs: dict[str, Any]) -> Tensor:
        """bool [B, T]: every placeholder."""
        ids = inputs["input_ids"]
        found = ids == self.image_id
        return found if self.video_id is None else found | (ids == self.video_id)

    def visual(self, model: Any, inputs: dict[str, Any]) -> Tensor:
        """bool [B, T]: the visual tokens."""
        return self.placeholders(inputs) & ~self.structure(model, inputs)

    def _prompt(
        self, model: Any, layouts: Sequence[Layout], seed: int, padding: str, chosen: Sequence[int]
    ) -> dict[str, Any]:
        found: dict[str, Any] = {}
        lengths: dict[str, list[int]] = {}
        for modality in ("image", "video"):
            pictures: list[Picture] = []
            seeds: list[int] = []
            together: list[int] = []
            number = 0
            for index, layout in enumerate(layouts):
                own = [Picture.parse(part) for part in layout if str(part).startswith(modality)]
                if index in chosen and own:
                    pictures += own
                    seeds += [1000 * (seed + 1) + number + i for i in range(len(own))]
                    together.append(len(own))
                number += len(own)
            lengths[modality] = []
            if pictures:
                encoded = self.encode(model, pictures, seeds, together)
                found |= encoded.inputs
                lengths[modality] = list(encoded.lengths)
        rows = [self._row(layouts[index], seed + index, lengths) for index in chosen]
        width = max(len(ids) for ids in rows)
        ids = torch.full((len(rows), width), models.PAD)
        mask = torch.zeros(len(rows), width, dtype=torch.long)
        for index, tokens in enumerate(rows):
            where = slice(width - len(tokens), width) if padding == "left" else slice(0, len(tokens))
            ids[index, where], mask[index, where] = tokens, 1
        found["input_ids"] = ids
        if not bool(mask.all()):
            found["attention_mask"] = mask
        return self.finish(found)

    def _row(self, layout: Layout, seed: int, lengths: dict[str, list[int]]) -> Tensor:
        """Token ids of one row; takes its pictures' lengths off the front of ``lengths``."""
        generator = torch.Generator().manual_seed(seed)
        parts: list[Tensor] = []
        for part in layout:
            if isinstance(part, int):
                parts.append(torch.randint(2, models.VIDEO, (part,), generator=generator))
                continue
            picture = Picture.parse(part)
            token = self.image_id if picture.modality == "image" else self.video_id
            parts.append(self.wrap(torch.full((lengths[picture.modality].pop(0),), token), picture))
        return torch.cat(parts)

    def wrap(self, placeholders: Tensor, picture: Picture) -> Tensor:
        """A picture's tokens: its placeholders, with whatever the family puts around them."""
        return placeholders

    def finish(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """What else the family's processor would put among the inputs."""
        return inputs


@lru_cache(maxsize=32)
def _built(family: Family, **options: Any) -> Any:
    return family.build(**options)


def noise(seed: int, *shape: int) -> Tensor:
    """Standard normal noise, a function of the seed."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


class Llava(Family):
    """One square grid per image."""

    name = "llava"
    row = (3, "image", 5)
    ragged = ((3, "image", 5), (9,), (2, "image", 4, "image", 7))

    def build(self, **options: Any) -> Any:
        return models.tiny_llava(**{"side": 4, **options})

    def encode(self, model: Any, pictures: Sequence[Picture], seeds: Sequence[int], together: Sequence[int]) -> Encoded:
        size = model.config.vision_config.image_size
        side = size // model.config.vision_config.patch_size
        pixels = torch.stack([noise(seed, 3, size, size) for seed in seeds]).to(model.dtype)
        return Encoded({"pixel_values": pixels}, (side * side,) * len(pictures))


class LlavaNext(Family):
    """A thumbnail, and tiles without their padding, with line ends."""

    name = "llava-next"
    row = (3, "image:30x20", 5)
    ragged = ((3, "image:30x20", 5), (9,), (2, "image:10x31", 4, "image:17x15", 7))

    def build(self, **options: Any) -> Any:
        return models.tiny_llava_next(**options)

    def encode(self, model: Any, pictures: Sequence[Picture], seeds: Sequence[int], together: Sequence[int]) -> Encoded:
        return _tiled(model, pictures, seeds, together)

    def structure(self, model: Any, inputs: dict[str, Any]) -> Tensor:
        return _newlines(self, model, inputs)


def _tiled(
    model: Any, pictures: Sequence[Picture], seeds: Sequence[int], together: Sequence[int], **more: Any
) -> Encoded:
    """Pieces of noise, as many as the model wants for each size, padded to the most of them with other noise."""
    from transformers.models.llava_next.modeling_llava_next import image_size_to_num_patches

    config = model.config
    tile = config.vision_config.image_size
    sizes = [picture.size or (tile, tile) for picture in pictures]
    alone = [number == 1 for number in together for _ in range(number)] if "batch_num_images" in more else None
    counts = [
        image_size_to_num_patches(list(size), config.image_grid_pinpoints, tile) if alone is None or alone[i] else 1
        for i, size in enumerate(sizes)
    ]
    pixels = torch.stack(
        [
            torch.cat(
                [noise(seed, count, 3, tile, tile), noise(-seed - len(seeds), max(counts) - count, 3, tile, tile)]
            )
            for seed, count in zip(seeds, counts, strict=True)
        ]
    ).to(model.dtype)
    inputs = {"pixel_values": pixels, "image_sizes": torch.tensor(sizes), **more}
    with torch.no_grad():
        features = model.model.get_image_features(**inputs).pooler_output
    return Encoded(inputs, tuple(len(item) for item in features))


def _newlines(family: Family, model: Any, inputs: dict[str, Any]) -> Tensor:
    """Placeholders whose feature is the very line end."""
    found = torch.zeros_like(inputs["input_ids"], dtype=torch.bool)
    for modality, token in (("image", family.image_id), ("video", family.video_id)):
        pixels = inputs.get("pixel_values" if modality == "image" else "pixel_values_videos")
        if pixels is None:
            continue
        names = ("pixel_values", "image_sizes", "batch_num_images") if modality == "image" else ("pixel_values_videos",)
        with torch.no_grad():
            output = getattr(model.model, f"get_{modality}_features")(
                **{name: inputs[name] for name in names if name in inputs}
            )
        flat = torch.cat([item.flatten(0, -2) for item in output.pooler_output])
        found[inputs["input_ids"] == token] = (flat == model.model.image_newline).all(-1)
    return found


class LlavaNextVideo(LlavaNext):
    """As LLaVA-NeXT, and pooled frames."""

    name = "llava-next-video"
    row = (3, "video:3", 2, "image:30x20", 5)
    ragged = ((3, "image:30x20", 5), (4, "video:3", 2, "image:16x31", 3), (2, "video:3", 6))
    video_id = models.VIDEO

    def build(self, **options: Any) -> Any:
        return models.tiny_llava_next_video(**options)

    def encode(self, model: Any, pictures: Sequence[Picture], seeds: Sequence[int], together: Sequence[int]) -> Encoded:
        if pictures[0].modality == "image":
            return super().encode(model, pictures, seeds, together)
        return _filmed(model, pictures, seeds)


class LlavaOnevision(LlavaNextVideo):
    """Tiles of which a large plane is shrunk, several images untiled, halved frames, a line end per video."""

    name = "llava-onevision"
    row = (3, "video:2", 2, "image:12x36", 5)
    ragged = ((3, "image:36x35", 5), (4, "image:30x20", "image", 3), (2, "video:2", 6))

    def build(self, **options: Any) -> Any:
        return models.tiny_llava_onevision(**options)

    def encode(self, model: Any, pictures: Sequence[Picture], seeds: Sequence[int], together: Sequence[int]) -> Encoded:
        if pictures[0].modality == "image":
            return _tiled(model, pictures, seeds, together, batch_num_images=torch.tensor(together))
        return _filmed(model, pictures, seeds)


def _filmed(model: Any, pictures: Sequence[Picture], seeds: Sequence[int]) -> Encoded:
    """Videos of noise; all of one batch have the same number of frames."""
    size = model.config.vision_config.image_size
    videos = torch.stack([noise(s, p.frames, 3, size, size) for s, p in zip(seeds, pictures, strict=True)])
    inputs = {"pixel_values_videos": videos.to(model.dtype)}
    with torch.no_grad():
        features = model.model.get_video_features(**inputs).pooler_output
    return Encoded(inputs, tuple(item.shape[:-1].numel() for item in features))


FAMILIES: dict[str, Family] = {
    family.name: family for family in (Llava(), LlavaNext(), LlavaNextVideo(), LlavaOnevision())
}
