"""Looking over a strategy's shoulder: what it reads of a site, what it changes there, and what it answers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import Any, ClassVar

import torch
from pydantic import PrivateAttr
from torch import Tensor

from tokentrim.contracts.selection import Selection
from tokentrim.contracts.sites import LayerSite, Need, StepSite
from tokentrim.contracts.strategy import Parts, Spatial, SpatialScorer, Strategy, Temporal, TemporalScorer
from tokentrim.errors import StrategyError, complaint

Site = LayerSite | StepSite


@dataclass
class SeenCall:
    """One decision.

    Attributes:
        part: who decided.
        where: the place, for messages.
        site: what it was shown.
        read: needs that it read.
        changed: names of the tensors that it wrote into.
        answer: scores of a scorer, Selection of a selector; None where it raised.
    """

    part: Spatial | Temporal
    where: str
    site: Site
    read: set[Need] = field(default_factory=set[Need])
    changed: list[str] = field(default_factory=list[str])
    answer: Any = None

    @property
    def scores(self) -> Tensor | None:
        """What a scorer answered."""
        return self.answer if isinstance(self.answer, Tensor) else None

    @property
    def selection(self) -> Selection | None:
        """What a selector answered."""
        return self.answer if isinstance(self.answer, Selection) else None


Ask = Callable[[Site], Any]
Look = Callable[[SeenCall, Ask], None]


class Watched(Strategy):
    """A strategy as it is, each of whose decisions is written down.

    Attributes:
        seen: the decisions, in order.
    """

    name: ClassVar[str] = "watched"
    _inner: Any = PrivateAttr()
    _parts: Any = PrivateAttr()
    _seen: list[SeenCall] = PrivateAttr(default_factory=list[SeenCall])

    @classmethod
    def of(cls, strategy: Strategy, look: Look | None = None) -> Watched:
        """``strategy``, watched.

        Args:
            strategy: whatever is to be looked at.
            look: also called with every decision, and with a function that asks the strategy about another site.
        """
        made = cls()
        parts = strategy.parts()
        made._inner = strategy
        made._parts = Parts(
            tuple(_shadowed(part, made._seen, look) for part in parts.spatial),
            None if parts.temporal is None else _shadowed(parts.temporal, made._seen, look),
            parts.attention,
        )
        return made

    @property
    def seen(self) -> list[SeenCall]:
        """The decisions, in order."""
        return self._seen

    def parts(self) -> Parts:
        """The watched parts."""
        return self._parts

    def needed(self) -> frozenset[Need]:
        """What the strategy asks for."""
        return self._inner.needed()

    def label(self) -> str:
        """The strategy's own."""
        return self._inner.label()

    def spec(self) -> dict[str, Any]:
        """The strategy's own."""
        return self._inner.spec()


def _shadowed(part: Any, seen: list[SeenCall], look: Look | None) -> Any:
    """A copy of a part, private attributes and all, whose ``score`` or ``select`` is written down."""
    kind = type(part)
    method = "score" if isinstance(part, SpatialScorer | TemporalScorer) else "select"

    def decide(self: Any, site: Site, *more: Any) -> Any:
        def ask(shown: Site) -> Any:
            return getattr(kind, method)(self, shown, *more)

        note = SeenCall(part, _place(site), site)
        seen.append(note)
        shown, check = _guarded(site, note)
        note.answer = ask(shown)
        note.changed += check()
        if look is not None:
            look(note, ask)
        return note.answer

    shadow = type(kind.__name__, (kind,), {"__module__": kind.__module__, "__doc__": kind.__doc__, method: decide})
    copy = part.model_copy()
    object.__setattr__(copy, "__class__", shadow)  # a copy by validation would lose what the object holds privately
    return copy


def _place(site: Site) -> str:
    return f"boundary {site.boundary}" if isinstance(site, LayerSite) else f"step {site.step}, layer {site.layer}"


def _guarded(site: Site, note: SeenCall) -> tuple[Site, Callable[[], list[str]]]:
    """The site with its readings noted, and what tells which tensors were written into since."""
    held: dict[str, tuple[Tensor, Tensor]] = {
        name: (value, value.clone()) for name, value in (("ids", site.ids), ("valid", site.valid))
    }

    def provider(need: Need) -> Callable[[], Any]:
        def provide() -> Any:
            note.read.add(need)
            found = site.providers[need]()
            for place, tensor in tensors_in(found):
                held[f"{need.value}{place}"] = (tensor, tensor.clone())
            return found

        return provide

    providers = {need: provider(need) for need in site.providers}
    guarded = replace(site, providers=_Providers(providers, note), cache={}, needs=site.needs)
    return guarded, lambda: [name for name, (now, before) in held.items() if not same(now, before)]


class _Providers(dict[Need, Callable[[], Any]]):
    """Readings by need; asking for one that the engine has not is the strategy's error, not a KeyError."""

    def __init__(self, providers: Mapping[Need, Callable[[], Any]], note: SeenCall) -> None:
        super().__init__(providers)
        self._note = note

    def __missing__(self, need: Need) -> Callable[[], Any]:
        raise StrategyError(complaint(f"Need.{need.name}", f"be available at {self._note.where}"))


def tensors_in(value: Any) -> list[tuple[str, Tensor]]:
    """The tensors of what a site gives, with their places in it: itself, a tuple's, or a dataclass's fields."""
    if isinstance(value, Tensor):
        return [("", value)]
    if isinstance(value, tuple):
        return [(f"[{i}]{place}", tensor) for i, one in enumerate(value) for place, tensor in tensors_in(one)]  # type: ignore[misc]
    if is_dataclass(value) and not isinstance(value, type):
        named = [(one.name, getattr(value, one.name)) for one in fields(value)]
        return [(f".{name}", tensor) for name, tensor in named if isinstance(tensor, Tensor)]
    return []


def same(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors are equal, NaN included."""
    return one.shape == other.shape and bool(((one == other) | ((one != one) & (other != other))).all())


def more_of(site: Site, row: int, token: int, factor: float) -> Site:
    """The site with all attention that token ``token`` of row ``row`` receives multiplied by ``factor``."""

    def raised(value: Any) -> Any:
        if isinstance(value, tuple):
            first, *rest = value
            return (raised(first), *rest)
        changed = value.clone()
        changed[row, ..., token] *= factor
        return changed

    def provider(need: Need) -> Callable[[], Any]:
        return lambda: raised(site.providers[need]()) if need in ATTENTION else site.providers[need]()

    return replace(site, providers={need: provider(need) for need in site.providers}, cache={})


ATTENTION = frozenset(
    {
        Need.LAST_ROW, Need.TEXT_ROWS, Need.WINDOW_ROWS, Need.COLUMN_MEAN, Need.PROMPT_ROW, Need.PROMPT_WINDOW,
        Need.PROMPT_COLUMNS, Need.VISION_ROWS, Need.VISION_COLUMNS, Need.VISION_WIDE, Need.NEXT_ROW,
        Need.NEXT_ROW_PLAIN, Need.HEAD_PEAKS, Need.GUIDE, Need.EVIDENCE,
    }
)  # fmt: skip
"""Readings of how much a token is attended to (or needed), with the tokens in the last dimension."""


def rank(scores: Tensor, token: int) -> int:
    """How many tokens of a row score higher than ``token``."""
    return int((scores > scores[token]).sum()) if not torch.isnan(scores).any() else -1
