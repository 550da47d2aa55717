"""Turns: one thread's forward at a time, and nobody leaves the context in the middle of another's."""

from __future__ import annotations

import threading
import time

from tokentrim.errors import UnsupportedError, complaint

_PATIENCE = 60.0
"""Seconds to wait for another thread's forward before the model is put back under it."""


class Turns:
    """Whose forward runs."""

    def __init__(self) -> None:
        self._holder: dict[None, threading.Thread] = {}

    def take(self) -> None:
        """Begin a forward.

        Raises:
            UnsupportedError: while another thread runs one.
        """
        self._holder.setdefault(None, threading.current_thread())  # one step: two threads cannot both find it empty
        self.require()
        self._holder[None] = threading.current_thread()

    def require(self) -> None:
        """Refuse a forward while another thread runs one.

        Raises:
            UnsupportedError: so that neither is answered by what the other left.
        """
        if not self.is_mine():
            raise UnsupportedError(
                complaint(
                    "a trimmed model",
                    "run one forward at a time",
                    "two threads",
                    "give each thread a model of its own; weights may be shared",
                )
            )

    def is_mine(self) -> bool:
        """Whether no other thread runs a forward."""
        holder = self._holder.get(None)
        return holder is None or holder is threading.current_thread() or not holder.is_alive()

    def give_back(self) -> None:
        """End this thread's forward, well or not."""
        if self.is_mine():
            self._holder.pop(None, None)

    def wait(self) -> None:
        """Let another thread's forward end."""
        end = time.monotonic() + _PATIENCE
        while not self.is_mine() and time.monotonic() < end:
            time.sleep(0.001)
