"""Ranks: the processes that ``torchrun`` started to answer each cell's questions together, one device per process."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final, TypeVar

from tokentrim.errors import UnsupportedError, complaint

# torchrun ends all processes when one dies, so that nobody waits this long in vain; a rank whose questions are
# answered may have to wait for hours for the others.
_PATIENCE: Final = timedelta(days=7)
T = TypeVar("T")


@dataclass(frozen=True)
class Ranks:
    """This process among those that share a run's questions.

    Attributes:
        index: its number, from 0; the first one writes.
        size: how many there are.
    """

    index: int = 0
    size: int = 1

    @property
    def first(self) -> bool:
        """Whether this is the process that writes and speaks."""
        return self.index == 0

    def owns(self, number: int) -> bool:
        """Whether the piece of work with this number is for this process."""
        return number % self.size == self.index

    def gather(self, mine: T) -> list[T]:
        """What every process has, in the order of ranks; in every process the same."""
        if self.size == 1:
            return [mine]
        from accelerate.utils import gather_object

        return gather_object([mine])

    def share(self, make: Callable[[], T]) -> T:
        """What the first process makes, in every process."""
        made: list[Any] = [make() if self.first else None]
        if self.size > 1:
            from accelerate.utils import broadcast_object_list

            broadcast_object_list(made)
        return made[0]


ALONE: Final = Ranks()


def started() -> int:
    """How many processes torchrun started, this one included; 1 without torchrun."""
    return int(os.environ.get("WORLD_SIZE", "1")) if "LOCAL_RANK" in os.environ else 1


def speaks() -> bool:
    """Whether this process is the one that prints, before the processes have met."""
    return started() == 1 or os.environ.get("RANK", "0") == "0"


def join(devices: Sequence[str]) -> Ranks:
    """Meet the other processes of this run, and take this one's device; alone without torchrun.

    Args:
        devices: the kinds of device that models are put on, ``cpu`` or ``cuda``.

    Raises:
        UnsupportedError: when accelerate is missing, or there are more processes than GPUs.
    """
    if started() > 1:
        _meet(any(device == "cuda" for device in devices))
    return joined()


def joined() -> Ranks:
    """This process among those that :func:`join` met; alone before."""
    if started() == 1:
        return ALONE
    from torch import distributed

    return Ranks(distributed.get_rank(), distributed.get_world_size()) if distributed.is_initialized() else ALONE


def leave() -> None:
    """Take leave of the other processes, where there are any."""
    if started() > 1:
        from accelerate import PartialState

        PartialState().destroy_process_group()


def _meet(on_gpu: bool) -> None:
    """Let accelerate connect the processes, and set the current device by the local rank."""
    try:
        from accelerate import PartialState
    except ImportError as cause:
        raise UnsupportedError(
            complaint(
                "tokentrim under torchrun", "find accelerate", hint="install it: pip install 'tokentrim-vlm[parallel]'"
            )
        ) from cause
    import torch

    here = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if on_gpu and here > torch.cuda.device_count():
        raise UnsupportedError(
            complaint("--nproc-per-node of torchrun", f"be at most the number of GPUs, {torch.cuda.device_count()}",
                      here, "start as many processes as there are GPUs")
        )  # fmt: skip
    # Only plain objects travel between ranks, so that gloo serves GPUs as well, and nobody waits by spinning on one.
    PartialState(cpu=not on_gpu, backend="gloo", timeout=_PATIENCE)
