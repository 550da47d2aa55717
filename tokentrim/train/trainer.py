"""What a trainable strategy brings to its training: options, and the loss of one step."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from tokentrim.contracts.trained.trainable import Trainable
from tokentrim.counting.shape import ModelShape
from tokentrim.runs.specs import ModelSpec

if TYPE_CHECKING:
    import numpy as np

    from tokentrim.train.data import Answered


class TrainOptions(BaseModel):
    """How to train; a trainer's own options are a subclass.

    The optimiser is AdamW. The learning rate rises over ``warm_up`` steps, stays, and falls to zero over the last
    fifth of the steps.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: ModelSpec = Field(
        default=ModelSpec(model="testbed"), description="a registered model, a folder, or an id of the hub"
    )
    tasks: tuple[str, ...] = Field(min_length=1, description="tasks whose training samples are used")
    steps: int = Field(default=2000, ge=1, description="batches to train on")
    batch_size: int = Field(default=16, ge=1, description="samples of a batch")
    learning_rate: float = Field(default=1e-3, gt=0, allow_inf_nan=False, description="highest learning rate")
    weight_decay: float = Field(default=0.01, ge=0, allow_inf_nan=False, description="of AdamW")
    warm_up: int = Field(default=50, ge=0, description="steps until the highest learning rate")
    clip: float = Field(default=1.0, gt=0, description="largest norm of the gradient")
    seed: int = Field(default=0, ge=0, lt=2**32, description="of initial weights and of every draw")
    start: Path | None = Field(default=None, description="weights file to start from, instead of initial values")

    def rate_at(self, step: int) -> float:
        """Learning rate of a step, 0 .. steps-1."""
        rising = (step + 1) / (self.warm_up + 1)
        falling = (self.steps - step) / (0.2 * self.steps)
        return self.learning_rate * min(1.0, rising, falling)


@dataclass(frozen=True)
class Group:
    """Parameters that learn at ``scale`` times the learning rate."""

    parameters: list[nn.Parameter]
    scale: float = 1.0


class Trainer(ABC):
    """Computes the loss that the loop minimises; the loop does everything else.

    Attributes:
        strategy: the strategy in training, which runs with :attr:`module`.
        shape: the model's numbers.
        options: checked options.
        module: what is trained.
    """

    Options: ClassVar[type[TrainOptions]] = TrainOptions

    def __init__(self, strategy: Trainable, shape: ModelShape, options: Any) -> None:
        self.shape, self.options = shape, options
        self.module: nn.Module = strategy.fresh(shape, options.seed, self.sizes(strategy))
        self.strategy = strategy.holding(self.module)

    def sizes(self, strategy: Trainable) -> dict[str, int]:
        """Sizes of the module; a trainer may let its options change the strategy's defaults."""
        return strategy.sizes(self.shape)

    def groups(self) -> list[Group]:
        """All parameters of the module, by learning rate; always in the same order."""
        return [Group(list(self.module.parameters()))]

    def begin(self, model: Any, batch: Answered) -> None:  # noqa: B027  # most need nothing
        """Set what the initial weights take from the model itself: called once, before the first step, with its batch.

        Not called when training goes on from a stored state or from a weights file.
        """

    @abstractmethod
    def loss(self, model: Any, batch: Answered, rng: np.random.Generator) -> tuple[Tensor, dict[str, float]]:
        """(the loss, figures to report) of one step.

        A function of its arguments and the module alone, so that a resumed training repeats an uninterrupted one.

        Args:
            model: the language model with its vision tower, frozen, on the options' device.
            batch: questions with their answers.
            rng: this step's own random numbers.
        """
