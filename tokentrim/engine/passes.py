"""Passes: the pass that is running, and attention switched on for as long as it has to be seen."""

from __future__ import annotations

from typing import Any

import torch

from tokentrim.engine.decode import Decode
from tokentrim.engine.prefill import Prefill
from tokentrim.engine.seams import attention
from tokentrim.engine.seams.clock import Clock
from tokentrim.engine.seams.undo import Undo


class Passes:
    """Begins and ends the passes of one engine.

    Attributes:
        running: the pass that is running, if one is.
    """

    def __init__(self, clock: Clock, text_config: Any) -> None:
        self.running: Prefill | Decode | None = None
        self._clock, self._config = clock, text_config
        self._undo, self._switched = Undo(), False
        self._mark: Any = None

    @property
    def decoding(self) -> Decode | None:
        """The decode pass that is running, if one is."""
        return self.running if isinstance(self.running, Decode) else None

    def begin(self, run: Prefill | Decode, device: torch.device) -> None:
        """Run a pass from here on."""
        self._undo.note(run.close)
        self.running, self._mark, self._switched = run, self._clock.start(device), False
        self._observe(run)

    def catch_up(self, run: Decode) -> None:
        """Run a step as usual that was meant to run compiled."""
        run.catch_up()
        self._observe(run)

    def _observe(self, run: Prefill | Decode) -> None:
        if run.observes and not self._switched:
            self._switched = True
            attention.switch_on(self._config, self._undo)

    def finish(self) -> Prefill | Decode | None:
        """End the pass that went well, and count its time; returns it."""
        run = self.running
        if run is not None:
            try:
                run.leave()
            finally:
                self.end()
            self._clock.stop("prefill" if isinstance(run, Prefill) else "decode", self._mark, everywhere=True)
        return run

    def end(self) -> None:
        """End the pass, if one is running: also one that an exception cut short."""
        self.running = None
        self._undo.run()

    def observer(self, layer: int) -> attention.Observer:
        """What sees the attention of a decoder layer for the pass that is running."""
        return lambda call: call.run() if self.running is None else self.running.attend(layer, call)
