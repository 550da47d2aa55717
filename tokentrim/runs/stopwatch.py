"""One measured run: seconds to the first token, seconds per further token, and peak memory."""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class GenerateTiming:
    """One call of ``generate``.

    Attributes:
        prefill_seconds: from the call to the first new token: vision tower, projector, prefill, head.
        decode_seconds_per_token: mean over the further new tokens; None when there was none.
    """

    prefill_seconds: float
    decode_seconds_per_token: float | None


class Stopwatch:
    """A stopping criterion that never stops, and marks the time at which each new token is known.

    ``generate`` calls it once per token, so one run gives prefill and decoding apart. On a GPU the marks are events:
    no synchronisation is added to the loop that is timed.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._marks: list[Any] = []
        self._nothing_done: Tensor | None = None

    def __call__(self, input_ids: Tensor, scores: Any, **_: Any) -> Tensor:
        """Mark the time; no row is done."""
        self.mark()
        if self._nothing_done is None:
            self._nothing_done = torch.zeros(input_ids.shape[0], dtype=torch.bool, device=input_ids.device)
        return self._nothing_done

    def mark(self) -> None:
        """Remember the present moment."""
        if self._device.type == "cuda":
            event = torch.cuda.Event(enable_timing=True)
            event.record(torch.cuda.current_stream(self._device))
            self._marks.append(event)
        else:
            self._marks.append(time.perf_counter())

    def seconds(self, first: int, last: int) -> float:
        """Seconds between two marks."""
        start, end = self._marks[first], self._marks[last]
        if self._device.type == "cuda":
            end.synchronize()
            return start.elapsed_time(end) / 1000.0
        return end - start

    def timing(self) -> GenerateTiming:
        """The run so far: the first mark is its start, each further one a new token."""
        tokens = len(self._marks) - 1
        decode = self.seconds(1, tokens) / (tokens - 1) if tokens > 1 else None
        return GenerateTiming(self.seconds(0, 1), decode)


@contextmanager
def settled() -> Generator[None]:
    """Let collections within it walk only what is made within it.

    One is made before every measurement. Through all that torch and transformers are made of it takes a third of a
    second, several times what a small model's answer does, and leaves nothing of the model in the processor's caches.
    """
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def timed_generate(model: Any, inputs: dict[str, Tensor], new_tokens: int, **settings: Any) -> GenerateTiming:
    """Greedy ``generate`` of ``new_tokens`` tokens, timed."""
    watch = _started(model.device)
    generate(model, inputs, new_tokens, stopping_criteria=[watch], **settings)
    _synchronise(model.device)
    return watch.timing()


def timed(device: torch.device, work: Callable[[], object]) -> float:
    """Seconds of ``work``."""
    watch = _started(device)
    work()
    watch.mark()
    return watch.seconds(0, 1)


def _started(device: torch.device) -> Stopwatch:
    """A stopwatch that has just been started, on a machine with nothing left to do."""
    gc.collect()  # so that no run pays for another's garbage
    _synchronise(device)
    watch = Stopwatch(device)
    watch.mark()
    return watch


def generate(model: Any, inputs: dict[str, Tensor], new_tokens: int, **settings: Any) -> Tensor:
    """The caller's own greedy ``generate`` call; it is over earlier where an answer ends, unless settings forbid it."""
    return model.generate(**inputs, max_new_tokens=new_tokens, do_sample=False, **settings)


def peak_bytes(device: torch.device, work: Callable[[], object]) -> int:
    """Most bytes that torch held during ``work`` beyond what it held before: activations and cache, no weights.

    On a GPU the allocator says so itself. On CPU the resident set only ever grows (and a freed block may stay in it),
    so the profiler's record of every allocation and release is added up instead: exact, and the same at each run.
    """
    gc.collect()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        work()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # or it reports its own start and end on stderr
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True) as profile:
        work()
    recorder: Any = profile.profiler
    changes = sorted(
        (event.start_ns(), event.nbytes()) for event in recorder.kineto_results.events() if event.name() == "[memory]"
    )
    held = most = 0
    for _, change in changes:
        held += change
        most = max(most, held)
    return most


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
