"""Progress of a comparison or calibration: a bar on a terminal, plain lines elsewhere, silence for Python."""

from __future__ import annotations

import time
from collections.abc import Generator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from rich.console import Console


class Progress(Protocol):
    """What a comparison tells about itself while it runs."""

    def start(self, total: int, finished: int) -> None:
        """There are ``total`` cells, of which ``finished`` were found in the folder."""

    def step(self, text: str) -> None:
        """One more cell is done."""

    def say(self, text: str) -> None:
        """Something else happened."""


class Silent(Progress):
    """Says nothing."""


class Lines:
    """Plain lines, one per ten percent: for logs."""

    def __init__(self, console: Console, things: str = "cells") -> None:
        self._console = console
        self._things = things
        self._total = self._done = self._told = 0
        self._begin = time.monotonic()

    def start(self, total: int, finished: int) -> None:
        """One line."""
        self._total, self._done = total, finished
        self._told = finished * 10 // total
        found = f", {finished} of them finished before" if finished else ""
        self._print(f"{total} {self._things}{found}")

    def step(self, text: str) -> None:
        """A line when another tenth is done."""
        self._done += 1
        tenth = self._done * 10 // self._total
        if tenth > self._told:
            self._told = tenth
            seconds = time.monotonic() - self._begin
            self._print(f"{self._done}/{self._total} {self._things} after {seconds:.0f} s: {text}")

    def say(self, text: str) -> None:
        """One line."""
        self._print(text)

    def _print(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)


class Bar:
    """A bar with the present cell and the time that is left."""

    def __init__(self, console: Console, things: str = "cells") -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as RichProgress

        self._console = console
        self._things = things
        self.bar = RichProgress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=console,
            transient=True,
        )
        self._task = self.bar.add_task(things, total=None)

    def start(self, total: int, finished: int) -> None:
        """Set the bar's length."""
        self.bar.update(self._task, total=total, completed=finished)
        if finished:
            self.say(f"{finished} of {total} {self._things} were finished before")

    def step(self, text: str) -> None:
        """Move the bar."""
        self.bar.update(self._task, description=text, advance=1)

    def say(self, text: str) -> None:
        """A line above the bar."""
        self._console.print(text, markup=False, highlight=False)


@contextmanager
def progress_on(console: Console, things: str = "cells") -> Generator[Progress, None, None]:
    """A bar where the console is a terminal, else lines.

    Args:
        console: where to.
        things: what is counted, in the plural.
    """
    if not console.is_terminal:
        yield Lines(console, things)
        return
    bar = Bar(console, things)
    with bar.bar:
        yield bar
