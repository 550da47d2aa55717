"""What differs between the architectures that the testbed trains; training and evaluation ask only this."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from tokentrim.testbed.scenes import SQUARE, Canvas
from tokentrim.testbed.training.model import VISION_WIDTH, build_model, pixel_values
from tokentrim.testbed.training.view import SQUARE_VIEW, View
from tokentrim.testbed.vocabulary import IDS


@dataclass(frozen=True)
class Encoded:
    """What the vision side makes of a batch.

    visual: the language model's visual tokens [batch, tokens, width]. features: the tower's, before they are
    projected [batch, tokens, feature width], 0 for structure. pooled: one per tile [batch, tiles, width], where the
    tower has one.
    """

    visual: Tensor
    features: Tensor
    pooled: Tensor | None


class TestbedFamily(ABC):
    """One architecture of the testbed."""

    name: str
    tower: str  # what the names of the tower's parameters hold
    feature_width: int
    sees_place: bool  # the tower's features tell where in the picture they are
    canvases: tuple[Canvas, ...]  # pictures that it is trained and checked on, the square one first
    words: Mapping[str, int] = IDS  # of questions and answers, with their token ids

    @abstractmethod
    def build(self, layers: int) -> Any:
        """Untrained model with so many decoder layers; initial weights follow torch's global seed."""

    @abstractmethod
    def view(self, canvas: Canvas) -> View:
        """How the model sees pictures of this canvas."""

    @abstractmethod
    def pixels(self, pictures: NDArray[np.uint8], view: View) -> Tensor:
        """The model's input, [batch, ...], of pictures [batch, height, width, 3]."""

    @abstractmethod
    def encode(self, model: Any, pixels: Tensor, view: View) -> Encoded:
        """Visual tokens of a batch of pictures of one size."""

    def tower_parameters(self, model: nn.Module) -> list[nn.Parameter]:
        """Parameters of the vision tower, the projector not included."""
        return [p for name, p in model.named_parameters() if self.tower in name]


class TestbedLlava(TestbedFamily):
    """LLaVA 1.5: one square picture, one grid of tokens."""

    name = "llava"
    tower = "vision_tower"
    feature_width = VISION_WIDTH
    sees_place = True
    canvases = (SQUARE,)

    def build(self, layers: int) -> Any:
        """A LLaVA with so many decoder layers."""
        return build_model(layers)

    def view(self, canvas: Canvas) -> View:
        """The only view; ValueError for any other canvas."""
        if canvas != SQUARE:
            raise ValueError(f"canvas of a LLaVA testbed must be {SQUARE}; got {canvas}")
        return SQUARE_VIEW

    def pixels(self, pictures: NDArray[np.uint8], view: View) -> Tensor:
        """Normalised pictures [batch, 3, 80, 80]."""
        return pixel_values(pictures)

    def encode(self, model: Any, pixels: Tensor, view: View) -> Encoded:
        """Patch features of the last layer but one, projected, and the pooled [CLS]."""
        output = model.model.vision_tower(pixels, output_hidden_states=True)
        features = output.hidden_states[-2][:, 1:]
        return Encoded(model.model.multi_modal_projector(features), features, output.pooler_output[:, None])


LLAVA = TestbedLlava()
