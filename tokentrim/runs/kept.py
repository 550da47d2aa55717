"""What one question's record says of its visual tokens: what every layer kept, and what its cache lost by each step.

Sets of tokens are written as runs ("0-9 12 15-17") and only where they change, so that a record stays small.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Annotated, Any, Final

from pydantic import BaseModel, Field, model_validator

from tokentrim.contracts.token_places import Count

if TYPE_CHECKING:
    from tokentrim.engine.tokens.trace import Trace

_MOST_LAYERS: Final = 1024
Changes = tuple[tuple[int, tuple[int, ...]], ...]


class KeptRecord(BaseModel):
    """What :meth:`Kept.as_dict` wrote, and the pieces of the answer beside it, as a file may hold them."""

    n_visual: Count
    n_layers: Annotated[int, Field(ge=1, le=_MOST_LAYERS, strict=True)]
    steps: Count
    prefill: list[tuple[Count, str]] = Field(min_length=1)
    evictions: list[tuple[str, list[tuple[Count, str]]]]
    tokens: list[str]

    @model_validator(mode="after")
    def _inside(self) -> KeptRecord:
        firsts = [first for first, _ in self.prefill]
        if firsts[0] != 0 or firsts != sorted(set(firsts)) or firsts[-1] >= self.n_layers:
            raise ValueError(f"prefill must begin with layer 0 and go through layers below {self.n_layers}")
        for layers, changes in self.evictions:
            _require_runs(layers, self.n_layers)
            if any(step > self.steps for step, _ in changes):
                raise ValueError(f"evictions must be of steps up to {self.steps}")
        for _, tokens in (*self.prefill, *(change for _, changes in self.evictions for change in changes)):
            _require_runs(tokens, self.n_visual)
        return self


def _require_runs(text: str, limit: int) -> None:
    """Raise ValueError unless a text is ascending runs of numbers below a limit; makes no list of them."""
    last = -1
    for run in text.split():
        ends = [int(end) for end in run.split("-")]
        if len(ends) > 2 or not last < ends[0] <= ends[-1] < limit:
            raise ValueError(f"{text[:40]!r} must be ascending runs of numbers below {limit}")
        last = ends[-1]


@dataclass(frozen=True)
class Kept:
    """One method on one question.

    Attributes:
        n_visual: visual tokens before pruning.
        n_layers: decoder layers.
        steps: decode forwards up to this answer's own end.
        prefill: (first layer, its tokens) wherever a layer keeps others than the one before; begins with layer 0.
        evictions: per layer whose cache changes while decoding, (step, tokens that are there before or after that
            step and not both). Mostly these are evicted; a strategy that returns tokens has them twice.
    """

    n_visual: int
    n_layers: int
    steps: int
    prefill: Changes
    evictions: Mapping[int, Changes]

    @classmethod
    def of(cls, trace: Trace, row: int, steps: int) -> Kept:
        """One row of a trace, up to decode forward ``steps``: its batch may have gone on for longer answers."""
        steps = min(steps, trace.steps)
        prefill: list[tuple[int, tuple[int, ...]]] = []
        evictions: dict[int, Changes] = {}
        for layer in range(trace.n_layers):
            kept = tuple(trace.kept(layer, row).tolist())
            if not prefill or prefill[-1][1] != kept:
                prefill.append((layer, kept))
            changes: list[tuple[int, tuple[int, ...]]] = []
            held = set(kept)
            for step, _ in trace.evictions.get(layer, []):
                if step <= steps:
                    now = set(trace.cached(layer, step, row).tolist())
                    if now != held:
                        changes.append((step, tuple(sorted(held ^ now))))
                    held = now
            if changes:
                evictions[layer] = tuple(changes)
        return cls(trace.n_visual[row], trace.n_layers, steps, tuple(prefill), evictions)

    def at(self, layer: int, step: int = 0) -> list[int]:
        """Tokens in the cache of ``layer`` at decode forward ``step``; step 0 is what the layer kept at prefill."""
        held = set([tokens for first, tokens in self.prefill if first <= layer][-1])
        for at, changed in self.evictions.get(layer, ()):
            if at <= step:
                held ^= set(changed)
        return sorted(held)

    @cached_property
    def end(self) -> list[int]:
        """What the last layer's cache holds at the end of the answer."""
        return self.at(self.n_layers - 1, self.steps)

    def as_dict(self) -> dict[str, Any]:
        """Plain data for a results file; layers that lose the same tokens at the same steps share an entry."""
        same: dict[Changes, list[int]] = {}
        for layer, changes in self.evictions.items():
            same.setdefault(changes, []).append(layer)
        return {
            "n_visual": self.n_visual,
            "n_layers": self.n_layers,
            "steps": self.steps,
            "prefill": _written(self.prefill),
            "evictions": [[to_runs(layers), _written(changes)] for changes, layers in same.items()],
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Kept:
        """What :meth:`as_dict` made."""
        evictions = {layer: _read(changes) for layers, changes in data["evictions"] for layer in from_runs(layers)}
        return cls(data["n_visual"], data["n_layers"], data["steps"], _read(data["prefill"]), evictions)


def to_runs(numbers: Sequence[int]) -> str:
    """Ascending numbers as text: ``[0, 1, 2, 5]`` is ``"0-2 5"``."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return " ".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)


def from_runs(text: str) -> list[int]:
    """What :func:`to_runs` wrote."""
    ends = [[int(end) for end in run.split("-")] for run in text.split()]
    return [number for run in ends for number in range(run[0], run[-1] + 1)]


def _written(changes: Changes) -> list[list[Any]]:
    return [[at, to_runs(tokens)] for at, tokens in changes]


def _read(changes: Sequence[Sequence[Any]]) -> Changes:
    return tuple((at, tuple(from_runs(tokens))) for at, tokens in changes)


def pieces(tokenizer: Any, ids: Sequence[int]) -> list[str]:
    """What each new token added to the answer, so that an answer can be followed step by step.

    The end token adds nothing. A token that ends within a character adds nothing either; the next one adds it all.
    """
    found: list[str] = []
    before = ""
    for place in range(len(ids)):
        text: str = tokenizer.decode(ids[: place + 1], skip_special_tokens=True)
        if text.endswith("\ufffd"):
            found.append("")
            continue
        found.append(text[len(before) :])
        before = text
    return found
