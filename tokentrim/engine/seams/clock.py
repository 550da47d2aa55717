"""Durations that mean the same on CPU and GPU: events on CUDA (no synchronisation until read), a clock elsewhere."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from tokentrim.engine.seams.private import device_of


@dataclass(frozen=True)
class _Mark:
    """When something began, on a GPU."""

    device: torch.device
    event: Any


def _recorded(device: torch.device) -> Any:
    """An event behind all that ``device`` has been asked for so far: two of one device have a time between them."""
    event = torch.cuda.Event(enable_timing=True)
    event.record(torch.cuda.current_stream(device))
    return event


@dataclass
class Clock:
    """Accumulates durations by name.

    Attributes:
        totals: seconds by name.
        devices: all that a forward runs on; what is asked to end :meth:`everywhere` waits for each of them.
    """

    totals: dict[str, float] = field(default_factory=dict[str, float])
    devices: tuple[torch.device | None, ...] = ()
    _pending: list[tuple[str, Any, Any]] = field(default_factory=list[tuple[str, Any, Any]])

    @classmethod
    def of(cls, layers: Iterable[nn.Module]) -> Clock:
        """A clock for a model with these layers."""
        return cls(devices=tuple(dict.fromkeys(map(device_of, layers))))

    def start(self, device: torch.device) -> Any:
        """A mark to hand to :meth:`stop`."""
        if device.type == "cuda":
            return _Mark(device, _recorded(device))
        return time.perf_counter()

    def stop(self, name: str, mark: Any, *, everywhere: bool = False) -> None:
        """Add the time since ``mark`` to ``name``: until the mark's device is done, or until all of them are."""
        if isinstance(mark, float):
            self.totals[name] = self.totals.get(name, 0.0) + time.perf_counter() - mark
            return
        stream = torch.cuda.current_stream(mark.device)
        for other in self.devices if everywhere else ():
            if other not in (mark.device, None):
                stream.wait_event(_recorded(other))
        self._pending.append((name, mark.event, _recorded(mark.device)))

    @contextmanager
    def timed(self, name: str, device: torch.device) -> Generator[None]:
        """Time the block under ``name``."""
        mark = self.start(device)
        try:
            yield
        finally:
            self.stop(name, mark)

    def seconds(self, name: str) -> float:
        """Seconds spent under ``name`` so far (waits for the GPU where events are pending)."""
        for pending, begin, end in self._pending:
            end.synchronize()
            self.totals[pending] = self.totals.get(pending, 0.0) + begin.elapsed_time(end) / 1000.0
        self._pending.clear()
        return self.totals.get(name, 0.0)
