"""What a strategy answers, checked wherever it is asked: by a plan, by the engine, by a report.

The check stands around the methods themselves, from the moment that a class is made, so that no room can forget it.
What a strategy decides at a site, scores and Selections, is checked where it is asked for: ``engine/deciding.py``.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import contextmanager
from typing import Any, Final

from pydantic import BaseModel

from tokentrim.contracts.extras import AttentionEdit, AttentionEditor, GuideRequest
from tokentrim.contracts.sites import Need
from tokentrim.counting.schedule import Schedule, is_whole
from tokentrim.errors import StrategyError, TokentrimError, cause_of, complaint

_CHECKED: Final = "tokentrim_checked"
_WIDEST: Final = 65536


def _all(kind: type | tuple[type, ...], holds: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, kind) and all(holds(one) for one in value)


def _is_parts(value: Any) -> bool:
    from tokentrim.contracts.strategy import Parts, Spatial, Temporal  # it imports this module

    return (
        isinstance(value, Parts)
        and _all(tuple, lambda part: isinstance(part, Spatial))(value.spatial)
        and isinstance(value.temporal, Temporal | None)
        and isinstance(value.attention, AttentionEditor | None)
    )


def _is_edit(value: Any) -> bool:
    return value is None or (
        isinstance(value, AttentionEdit)
        and (value.radius is None or is_whole(value.radius))
        and (value.heads is None or _all(tuple, lambda on: isinstance(on, bool))(value.heads))
    )


_ANSWERS: Final[Mapping[str, tuple[str, Callable[[Any], bool]]]] = {
    "parts": ("give Parts: a tuple of spatial deciders, a temporal one or None, an editor or None", _is_parts),
    "needed": ("give a frozenset of tokentrim.Need", _all((frozenset, set), lambda need: isinstance(need, Need))),
    "needed_at": ("give a frozenset of tokentrim.Need", _all((frozenset, set), lambda need: isinstance(need, Need))),
    "label": ("give text", lambda value: isinstance(value, str) and bool(value)),
    "spec": ("give a dict", lambda value: isinstance(value, dict)),
    "schedule": ("give a tokentrim.Schedule", lambda value: isinstance(value, Schedule)),
    "count": ("give an integer of at least 0", is_whole),
    "ranks_once": ("give True or False", lambda value: isinstance(value, bool)),
    "evicts": ("give True or False", lambda value: isinstance(value, bool)),
    "row_layer": ("give a decoder layer", is_whole),
    "for_answer": ("give a strategy", lambda value: hasattr(value, "parts")),
    "wants_vision_blocks": ("give a tuple of integers", _all(tuple, lambda block: is_whole(block, None))),
    "vision_blocks_of": ("give a tuple of integers", _all(tuple, lambda block: is_whole(block, None))),
    "wants_window": (
        f"give an integer from 1 to {_WIDEST}: so many rows are computed",
        lambda value: is_whole(value, 1) and value <= _WIDEST,
    ),
    "wants_guide": ("give a tokentrim.GuideRequest or None", lambda value: isinstance(value, GuideRequest | None)),
    "edit": ("give a tokentrim.AttentionEdit that fits, or None", _is_edit),
    "merges_in_tower": ("give a tuple of integers of at least 0", _all(tuple, is_whole)),
    "prepare": ("", lambda value: True),
    "meet": ("", lambda value: True),
    "begin": ("", lambda value: True),
}
"""Method -> what its answer must be, and whether one is that. None may raise anything but our own errors."""


class Checked(BaseModel):
    """A class whose answers are checked, whoever asks."""

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        """Put the checks around the methods of a new class."""
        super().__pydantic_init_subclass__(**kwargs)
        check_answers(cls)


def check_answers(cls: type, names: Iterable[str] = tuple(_ANSWERS)) -> None:
    """Put the checks around the methods ``names`` of a class that was just made."""
    for name in names:
        found = inspect.getattr_static(cls, name, None)
        if found is not None and not hasattr(found, _CHECKED) and not getattr(found, "__isabstractmethod__", False):
            setattr(cls, name, _checked(name, found))


def _checked(name: str, found: Any) -> Callable[..., Any]:
    must, fits = _ANSWERS[name]
    bound: Callable[..., Any] = getattr(found, "__get__", lambda *_: found)  # type: ignore[reportUnknownLambdaType]

    @functools.wraps(found)
    def ask(self: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            answer = bound(self, type(self))(*args, **kwargs)
            if fits(answer):
                return answer
        except TokentrimError as error:
            text = str(error)
            if must and repr(getattr(type(self), "name", None)) not in text and not text.startswith(f"{name}("):
                error.args = (f"{_question(name, self, args, kwargs)}: {error}",)  # it does not say who speaks
            raise
        except Exception as cause:  # a stranger's method may raise anything
            raise raised(_question(name, self, args, kwargs), cause) from cause
        question = _question(name, self, args, kwargs)
        raise StrategyError(complaint(question, must, answer, "plans and prompts rely on it"))

    setattr(ask, _CHECKED, True)
    return ask


def _question(name: str, strategy: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> str:
    """What was asked of whom, with the numbers in it: step, layer, tokens."""
    names = {"count": ("step", "layer", "n_prefill"), "schedule": ("shape", "n_visual")}
    names |= {"needed_at": ("boundary",), "edit": ("layer",), "row_layer": ("layer",), "for_answer": ("new_tokens",)}
    given = {**dict(zip(names.get(name, ()), args, strict=False)), **kwargs}
    numbers = ", ".join(f"{key}={value}" for key, value in given.items() if isinstance(value, int))
    return f"{name}({numbers}) of {_class_name(strategy) if name == 'label' else name_of(strategy)!r}"


def name_of(strategy: Any) -> str:
    """A strategy's label for messages; the name of its class where it has no label that can be read."""
    try:
        return strategy.label()
    except Exception:  # the message is about something else
        return _class_name(strategy)


def _class_name(strategy: Any) -> str:
    return type(strategy).__name__


def raised(what: str, cause: BaseException) -> StrategyError:
    """The error for a stranger's code that raised something that is no error of ours."""
    return StrategyError(complaint(what, "answer without raising", cause_of(cause), "the cause is attached"))


@contextmanager
def blamed(where: Callable[[], str]) -> Generator[None]:
    """Add who was asked, and where, to whatever goes wrong inside."""
    try:
        yield
    except TokentrimError as error:
        error.args = (f"{where()}: {error}",)  # not a new one: a stranger's class may want other arguments
        raise
    except Exception as error:
        raise raised(f"strategy {where()}", error) from error
