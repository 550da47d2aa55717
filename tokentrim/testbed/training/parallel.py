"""Averaging over two or more training processes, each with one thread.

On a small model two processes are about a fifth faster than two threads: an operation is too short to be
split.
"""

from collections.abc import Iterable
from typing import Final

import torch
import torch.distributed as dist
from torch import Tensor, nn

_SCALARS: Final = 4


class FlatGradients:
    """All gradients in one buffer, of which every `.grad` is a view, so that one all-reduce averages them."""

    def __init__(self, parameters: Iterable[nn.Parameter], world: int) -> None:
        self.world = world
        parameters = list(parameters)
        self.size = sum(p.numel() for p in parameters)
        self.buffer = torch.zeros(self.size + _SCALARS)
        start = 0
        for parameter in parameters:
            parameter.grad = self.buffer[start : start + parameter.numel()].view_as(parameter)
            start += parameter.numel()

    def average(self, *scalars: Tensor) -> list[float]:
        """Average gradients and the given scalars over processes."""
        for i, value in enumerate(scalars):
            self.buffer[self.size + i] = value.detach()
        if self.world > 1:
            dist.all_reduce(self.buffer)
            self.buffer /= self.world
        return self.buffer[self.size : self.size + len(scalars)].tolist()

    def clip(self, norm: float) -> None:
        """Scale the gradients down to a total norm."""
        gradients = self.buffer[: self.size]
        gradients *= torch.clamp(norm / (gradients.norm() + 1e-6), max=1.0)

    def zero(self) -> None:
        """Forget the gradients."""
        self.buffer.zero_()


def sum_over_processes(values: Tensor, world: int) -> Tensor:
    """Sum of a tensor over all processes."""
    if world > 1:
        dist.all_reduce(values)
    return values
