"""The geometry of any model that there is a config and a processor of: weights are made up all the same."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar, Final, cast

import torch
from torch import Tensor

from tokentrim.bench.families.base import Geometry
from tokentrim.counting.shape import VisionShape
from tokentrim.counting.tilings import NOMINAL_SIZE
from tokentrim.errors import DataError
from tokentrim.loading import describe, prompt_inputs
from tokentrim.selftest import model_class_of
from tokentrim.selftest.learning import learnt, reader
from tokentrim.selftest.shrink import token_ids

_TEXT: Final = ("input_ids", "attention_mask")
_KINDS: Final = ("mm_token_type_ids", "token_type_ids")
_QUESTION: Final = "?"


@dataclass(frozen=True, kw_only=True)
class OfModel(Geometry):
    """A model's own sizes, and a square picture of noise as its own processor reads it.

    Attributes:
        model: a registered name, a folder, or an id of the hub.
        picture: token ids that the processor writes for one picture, its marks among them.
        token: the id of a placeholder.
        words: ids that stand for text alone.
        kinds: inputs that tell pictures from text.
        vision: what pictures become.
    """

    model: str
    picture: tuple[int, ...]
    token: int
    words: tuple[int, ...]
    kinds: tuple[str, ...]
    vision: VisionShape

    marks: ClassVar[str] = "around its pictures"

    @property
    def n_visual(self) -> int:
        """Visual tokens per image."""
        return self.vision.for_image(self.image_size, self.image_size).n_visual

    @property
    def n_marks(self) -> int:
        """What the processor writes around a picture's placeholders, and placeholders that are line ends."""
        return len(self.picture) - self.n_visual

    def model_class(self) -> Any:
        """The class of the model."""
        return model_class_of(self.config())

    def config(self) -> Any:
        """The model's own."""
        return describe(self.model).config

    def shape_of_vision(self, vision: VisionShape | None, images: int) -> VisionShape | None:
        """What was learnt from the processor."""
        return super().shape_of_vision(self.vision, images)

    def image_ids(self) -> Tensor:
        """int64 [n_visual + n_marks], as the processor writes them."""
        return torch.tensor(self.picture)

    def text(self, batch: int, tokens: int, generator: torch.Generator) -> Tensor:
        """int64 [batch, tokens], of words alone: special tokens have meanings that a bench does not mean."""
        return torch.tensor(self.words)[torch.randint(len(self.words), (batch, tokens), generator=generator)]

    def pictures(self, count: int, generator: torch.Generator) -> dict[str, Tensor]:
        """What the processor makes of one picture in each of ``count`` prompts."""
        return self.pictures_of(count, 1, generator)

    def pictures_of(self, batch: int, images: int, generator: torch.Generator) -> dict[str, Tensor]:
        """The same for ``images`` pictures in each."""
        side = self.image_size
        made = [
            [_picture(torch.randint(256, (side, side, 3), generator=generator)) for _ in range(images)]
            for _ in range(batch)
        ]
        inputs = prompt_inputs(reader(self.model)[0], [_QUESTION] * batch, made)
        return {name: value for name, value in inputs.items() if name not in (*_TEXT, *_KINDS)}

    def text_inputs(self, ids: Tensor) -> dict[str, Tensor]:
        """Ids, mask, and what tells the model which of them are pictures."""
        told = {name: (ids == self.token).to(ids.dtype) for name in self.kinds}
        return {**super().text_inputs(ids), **told}


@lru_cache(maxsize=8)
def of_model(model: str) -> OfModel:
    """The geometry of a model, with what its processor makes of a picture.

    Raises:
        TokentrimError: when there is no such model, or its processor cannot be had.
    """
    described = describe(model)
    shape, side = learnt(model, described.shape), NOMINAL_SIZE[0]
    processor, token = reader(model)
    shown = prompt_inputs(processor, [_QUESTION], [[_picture(torch.full((side, side, 3), 200))]])
    vision = cast("VisionShape", shape.vision)  # learnt() knows one or raises
    named = token_ids(described.config.to_dict()) | set(processor.tokenizer.added_tokens_decoder)
    words = set(processor.tokenizer.get_vocab().values()) - named
    return OfModel(
        n_layers=shape.n_layers, hidden_size=shape.hidden_size, n_heads=shape.n_heads,
        intermediate_size=shape.intermediate_size, vocab_size=shape.vocab_size, vision_layers=vision.n_layers,
        vision_hidden_size=vision.hidden_size, vision_heads=0, vision_intermediate_size=vision.intermediate_size,
        image_size=side, summary=f"the sizes of {shape.name}", model=model, picture=_written(processor, shown, token),
        token=token, words=tuple(sorted(n for n in words if n < shape.vocab_size)),
        kinds=tuple(name for name in _KINDS if name in shown), vision=vision,
    )  # fmt: skip


def _written(processor: Any, shown: Any, token: int) -> tuple[int, ...]:
    """The ids that a picture adds to a prompt: all from its first placeholder to its last, and what else it brings."""
    ids: list[int] = shown["input_ids"][0].tolist()
    places = [place for place, one in enumerate(ids) if one == token]
    first, last = places[0], places[-1]
    try:
        bare: list[int] = prompt_inputs(processor, [_QUESTION], [[]])["input_ids"][0].tolist()
    except DataError:  # a processor that takes no prompt without a picture
        return tuple(ids[first : last + 1])
    before = next((n for n, (one, other) in enumerate(zip(ids, bare, strict=False)) if one != other), len(bare))
    before = min(before, first)
    behind = max(len(ids) - (len(bare) - before), last + 1)
    return tuple(ids[before:behind])


def _picture(pixels: Tensor) -> Any:
    """A picture of pixels [H, W, 3] in 0..255."""
    from PIL import Image

    return Image.fromarray(pixels.to(torch.uint8).numpy())
