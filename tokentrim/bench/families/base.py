"""What a bench asks of a family of models."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, Final

import torch
from torch import Tensor

from tokentrim.counting.shape import VisionShape

IMAGE: Final = 3
"""Token id that stands for an image position."""


def decoder(layers: int, width: int, heads: int, feed_forward: int, vocabulary: int) -> dict[str, int]:
    """Sizes of a language model, as fields of a :class:`Geometry`."""
    return {
        "n_layers": layers,
        "hidden_size": width,
        "n_heads": heads,
        "intermediate_size": feed_forward,
        "vocab_size": vocabulary,
    }


def tower(layers: int, width: int, heads: int, feed_forward: int) -> dict[str, int]:
    """Sizes of a vision tower, likewise."""
    return {
        "vision_layers": layers,
        "vision_hidden_size": width,
        "vision_heads": heads,
        "vision_intermediate_size": feed_forward,
    }


@dataclass(frozen=True, kw_only=True)
class Geometry(ABC):
    """Sizes of a model, and of the one picture size that it is timed with.

    Attributes:
        n_layers: decoder layers.
        hidden_size: width of the decoder.
        n_heads: its attention heads.
        intermediate_size: its feed-forward width.
        vocab_size: its vocabulary.
        vision_layers: blocks of the tower.
        vision_hidden_size: width of the tower.
        vision_heads: attention heads of the tower.
        vision_intermediate_size: its feed-forward width.
        image_size: side of the picture in pixels.
        summary: one line for people.
    """

    n_layers: int
    hidden_size: int
    n_heads: int
    intermediate_size: int
    vocab_size: int
    vision_layers: int
    vision_hidden_size: int
    vision_heads: int
    vision_intermediate_size: int
    image_size: int
    summary: str

    architecture: ClassVar[str]
    """The class of transformers that models of the family are."""
    patch: ClassVar[int] = 14
    """Pixels along each side of a patch."""
    first_text: ClassVar[int] = IMAGE + 1
    """Ids below it have a meaning of their own; text is drawn from here on."""
    marks: ClassVar[str] = ""
    """What the tokens are that a picture brings along besides visual ones."""

    @property
    @abstractmethod
    def n_visual(self) -> int:
        """Visual tokens per image."""

    @property
    def n_marks(self) -> int:
        """Tokens that an image brings along, and that count as text: line ends, or marks around it."""
        return 0

    def n_text(self, prompt_tokens: int, images: int) -> int:
        """Text tokens of a prompt: the asked ones, and the marks of its images."""
        return prompt_tokens + images * self.n_marks

    @abstractmethod
    def config(self) -> Any:
        """The transformers config."""

    def model_class(self) -> Any:
        """The class of the model."""
        import transformers

        return getattr(transformers, self.architecture)

    def shape_of_vision(self, vision: VisionShape | None, images: int) -> VisionShape | None:
        """A tower's numbers for the bench's pictures, ``images`` in a prompt; ``vision`` is what its config says."""
        return None if vision is None else vision.for_image(self.image_size, self.image_size, images)

    def text(self, batch: int, tokens: int, generator: torch.Generator) -> Tensor:
        """int64 [batch, tokens]: ids of text."""
        return torch.randint(self.first_text, self.vocab_size, (batch, tokens), generator=generator)

    def image_ids(self) -> Tensor:
        """int64 [n_visual + n_marks]: token ids of one image."""
        return torch.full((self.n_visual + self.n_marks,), IMAGE)

    @abstractmethod
    def pictures(self, count: int, generator: torch.Generator) -> dict[str, Tensor]:
        """What the encoder takes for ``count`` random pictures, by argument name."""

    def pictures_of(self, batch: int, images: int, generator: torch.Generator) -> dict[str, Tensor]:
        """The same for ``batch`` prompts with ``images`` pictures each."""
        return self.pictures(batch * images, generator)

    def text_inputs(self, ids: Tensor) -> dict[str, Tensor]:
        """What ``generate`` takes beside the pictures, by argument name, each int64 [B, T].

        Args:
            ids: int64 [B, T], the prompt.
        """
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
