"""Progress of long work: a bar on a terminal, plain lines elsewhere, silence for Python; both say what time is left."""

from __future__ import annotations

import time
from collections.abc import Generator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final, Protocol

if TYPE_CHECKING:
    from rich.console import Console


_PATIENCE: Final = 30.0
"""Seconds after which a log gets a line of its own, however little was done."""


class Progress(Protocol):
    """What long work tells about itself while it runs."""

    def start(self, total: int, finished: int = 0) -> None:
        """There are ``total`` things to do, of which ``finished`` were done before."""

    def step(self, text: str) -> None:
        """One more is done."""

    def say(self, text: str) -> None:
        """Something else happened."""


class Silent(Progress):
    """Says nothing."""


class Lines:
    """Plain lines, one per ten percent and at least two a minute: for logs."""

    def __init__(self, console: Console, things: str = "cells") -> None:
        self._console = console
        self._things = things
        self._total = self._done = self._tenth = self._found = 0
        self._begin = self._told = time.monotonic()

    def start(self, total: int, finished: int = 0) -> None:
        """One line."""
        self._total, self._done, self._found = total, finished, finished
        self._tenth = finished * 10 // max(total, 1)
        self._begin = self._told = time.monotonic()
        found = f", {finished} of them finished before" if finished else ""
        self._print(f"{total} {self._things}{found}")

    def step(self, text: str) -> None:
        """A line when another tenth is done, or nothing was said for half a minute."""
        self._done += 1
        tenth, now = self._done * 10 // max(self._total, 1), time.monotonic()
        if tenth > self._tenth or now - self._told > _PATIENCE:
            self._tenth, self._told = tenth, now
            passed = now - self._begin
            left = passed * (self._total - self._done) / max(self._done - self._found, 1)
            rest = f", about {duration(left)} left" if self._done < self._total else ""
            self._print(f"{self._done}/{self._total} {self._things} after {duration(passed)}{rest}: {text}")

    def say(self, text: str) -> None:
        """One line."""
        self._print(text)

    def _print(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)


def duration(seconds: float) -> str:
    """A time as people read it: seconds below two minutes, minutes below two hours, else hours."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


class Bar:
    """A bar with the present cell and the time that is left."""

    def __init__(self, console: Console, things: str = "cells") -> None:
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress as RichProgress,
            TextColumn,
            TimeRemainingColumn,
        )

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

    def start(self, total: int, finished: int = 0) -> None:
        """Set the bar's length."""
        self.bar.reset(self._task, total=total, completed=finished)  # the speed of other work says nothing of this
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
