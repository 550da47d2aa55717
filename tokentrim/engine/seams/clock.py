"""Durations that mean the same on CPU and GPU: events on CUDA (no synchronisation until read), a clock elsewhere."""

from __future__ import annotations

import time
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch


@dataclass
class Clock:
    """Accumulates durations by name."""

    totals: dict[str, float] = field(default_factory=dict[str, float])
    _pending: list[tuple[str, Any, Any]] = field(default_factory=list[tuple[str, Any, Any]])

    def start(self, device: torch.device) -> Any:
        """A mark to hand to :meth:`stop`."""
        if device.type == "cuda":
            event = torch.cuda.Event(enable_timing=True)
            event.record(torch.cuda.current_stream(device))
            return event
        return time.perf_counter()

    def stop(self, name: str, mark: Any) -> None:
        """Add the time since ``mark`` to ``name``."""
        if isinstance(mark, float):
            self.totals[name] = self.totals.get(name, 0.0) + time.perf_counter() - mark
            return
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        self._pending.append((name, mark, event))

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
