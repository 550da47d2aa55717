"""Parameters that strategies with evenly spaced cuts share: where blocks of layers begin."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, Field

from tokentrim import ModelShape


class Blocks(BaseModel):
    """Pruning boundaries at equal distances, and the blocks of layers between them."""

    start: int = Field(default=2, ge=1, description="first boundary at which tokens go")
    stride: Annotated[int, Field(ge=1)] | Literal["auto"] = Field(
        default="auto",
        description="layers from one pruning boundary to the next; auto: a third of the model's, and one",
    )

    def strides(self, shape: ModelShape) -> int:
        """The stride in layers: as given, or ``floor(L / 3) + 1``."""
        return shape.n_layers // 3 + 1 if self.stride == "auto" else self.stride

    def boundaries(self, shape: ModelShape) -> range:
        """start, start + stride, ... below L."""
        return range(self.start, shape.n_layers, self.strides(shape))

    def in_front(self, layer: int, shape: ModelShape) -> int:
        """The layer before the block of ``layer``; layer 0 where no boundary lies before ``layer``."""
        return max((boundary - 1 for boundary in self.boundaries(shape) if boundary <= layer), default=0)
