"""One family of errors, and the one grammar in which they speak.

*What* of *whom* must be *constraint*; got *value*. Then what to do. :func:`complaint` builds such a sentence.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import ClassVar, Final

_NOT_GIVEN: Final = object()
_LONGEST_VALUE: Final = 200  # characters of a value that a message shows
_LONGEST_REASON: Final = 300
WHOLE: Final = 4000
"""Characters of a reason that is to be shown whole: what libraries say of files and of what they miss."""


class TokentrimError(Exception):
    """Root of everything that tokentrim raises on purpose."""

    exit_code: ClassVar[int] = 2
    """What the command line exits with: 2 for bad input, 1 for a run that failed."""


class ConfigError(TokentrimError):
    """A configuration, YAML or dict, that does not say what it must."""


class UnknownNameError(TokentrimError):
    """A name that nothing is registered under."""


class PluginError(TokentrimError):
    """A plugin that cannot be loaded, or that breaks the rules of registration."""


class AdapterError(TokentrimError):
    """A model that no adapter recognises, or whose layout its adapter no longer finds."""


class UnsupportedError(TokentrimError):
    """A feature or model that is refused before anything runs."""


class DataError(TokentrimError):
    """An image or prompt that cannot be used."""


class ResultsError(TokentrimError):
    """A results folder that is missing, incomplete or of another run."""


class StrategyError(TokentrimError):
    """A strategy whose parameters contradict each other, or that decided something impossible."""


class EngineError(TokentrimError):
    """A run that broke an invariant of the engine."""

    exit_code: ClassVar[int] = 1


def complaint(what: str, must: str, got: object = _NOT_GIVEN, hint: str = "") -> str:
    """The house sentence: ``{what} must {must}; got {got}. {hint}``.

    Args:
        what: what is wrong, and of whom, such as ``"keep_ratio of strategy 'fastv'"``.
        must: the constraint, without the word "must": ``"be a number in (0, 1]"``.
        got: the offending value, shown by its ``repr``; leave it out where there is none.
        hint: what to do about it.
    """
    value = "" if got is _NOT_GIVEN else f"; got {shown(got)}"
    return f"{what} must {must}{value}." + (f" {sentence(hint)}" if hint else "")


def cause_of(error: BaseException) -> str:
    """The class and the text of somebody else's exception."""
    try:
        return f"{type(error).__name__}: {error}"
    except Exception:  # its text may be code that fails, too
        return type(error).__name__


def shown(value: object) -> str:
    """``repr`` of a value, cut where it would drown the message."""
    try:
        text = repr(value)
    except Exception:  # a stranger's object; the message is about something else
        text = f"an object of class {type(value).__name__}"
    return text if len(text) <= _LONGEST_VALUE else f"{text[:_LONGEST_VALUE]}..."


def reason_of(cause: BaseException, at_most: int = _LONGEST_REASON) -> str:
    """What a stranger's code raised, as one line of text that any file can hold, of so many characters."""
    try:
        said = str(cause)
    except Exception:  # not even that is sure of a stranger's exception
        said = "it cannot say what"
    line = " ".join(f"{type(cause).__name__}: {said}".split())
    line = line if len(line) <= at_most else f"{line[: at_most - 3]}..."
    return line.encode(errors="backslashreplace").decode()


def sentence(text: str) -> str:
    """``text`` with an end mark, and with a capital first letter unless its first word is code."""
    text = text.strip()
    first, _, _ = text.partition(" ")
    if first.isalpha() and first.islower():
        text = text[0].upper() + text[1:]
    return text if text.endswith((".", "?", "!")) else f"{text}."


def nearest(name: str, names: Iterable[str]) -> str | None:
    """The one of ``names`` that ``name`` most likely meant, or None when nothing is close."""
    by_lower = {candidate.lower(): candidate for candidate in names}
    close = difflib.get_close_matches(name.lower(), by_lower, n=1, cutoff=0.5)
    return by_lower[close[0]] if close else None


def suggestion(name: str, names: Iterable[str]) -> str:
    """Hint for a misspelt name: the nearest valid one, then all of them."""
    valid = sorted(names)
    close = nearest(name, valid)
    known = f"Known: {', '.join(valid)}." if valid else "None is known."
    return f"Did you mean {close!r}? {known}" if close else known


def unknown_name(kind: str, name: str, names: Iterable[str]) -> UnknownNameError:
    """The error for a name that is not registered, with the nearest valid name and the list."""
    return UnknownNameError(complaint(f"the {kind}", "be a registered name", name, suggestion(name, names)))
