"""What the features are run on: a family's model, one strategy of each ability, and the references for both."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList

from tests.engine.cases import RENUMBERED, SPECS, trimmed
from tests.families import Family, Layout
from tests.masked import masked_logits
from tokentrim.config.specs import strategy_from
from tokentrim.contracts import fits
from tokentrim.contracts.sites import Need
from tokentrim.session import Session, adapter_of, trim, unwrapped

NEW = 5
"""Tokens that a generation makes."""
SPATIAL, TEMPORAL = ("input", "inside", "merging", "renumber"), ("temporal", "both")
KINDS = ("none", *SPATIAL, *TEMPORAL)
_PLAIN = frozenset(
    {Need.RANDOM, Need.GRID, Need.LAST_ROW, Need.TEXT_ROWS, Need.COLUMN_MEAN, Need.PROMPT_ROW, Need.ACCUMULATED}
)
"""What every model and caller supplies, whatever pads the prompt."""


def group_of(kind: str) -> str:
    """The column of the table that a kind of strategy belongs to."""
    return "none" if kind == "none" else "spatial" if kind in SPATIAL else "temporal"


@lru_cache(maxsize=1)
def representatives() -> dict[str, dict[str, Any]]:
    """The first registered strategy of each kind, told by what it declares and where it would act."""
    from tests.models import tiny_llava

    shape = adapter_of(model := tiny_llava(side=4)).shape(model.config)
    found: dict[str, dict[str, Any]] = {"none": {"name": "none"}}
    for spec in [*SPECS.values(), *RENUMBERED.values()]:
        strategy = strategy_from(spec).strategy
        parts, temporal, needs = strategy.spatial_parts, strategy.temporal_part, strategy.needed()
        if (
            needs - _PLAIN
            or strategy.trainable
            or getattr(strategy, "guide", None)
            or "path" in type(strategy).model_fields
        ):
            continue
        if not (parts or temporal) or not all(part.count_is_static for part in parts):
            continue
        boundaries = {decision.boundary for decision in fits.decisions(parts, shape, (16,))}
        if temporal is not None:
            kind = "both" if parts else "temporal"
        elif strategy.merges or any(part.merges for part in parts):
            kind = "merging"
        elif any(part.positions == "renumber" for part in parts):
            kind = "renumber" if boundaries and min(boundaries) > 0 else ""
        else:
            kind = "input" if boundaries == {0} else "inside" if needs & {Need.LAST_ROW, Need.TEXT_ROWS} else ""
        if kind:
            found.setdefault(kind, spec)
    return {kind: found[kind] for kind in KINDS}


class Say(LogitsProcessor):
    """Makes ``generate`` say given tokens [G], whatever the model thinks."""

    def __init__(self, tokens: Tensor, start: int) -> None:
        self.tokens, self.start = tokens, start

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        wanted = torch.full_like(scores, float("-inf"))
        wanted[:, self.tokens[input_ids.shape[1] - self.start]] = 0.0
        return wanted


@dataclass
class Bench:
    """A model under one kind of strategy.

    Attributes:
        family: of the model.
        kind: of the strategy.
        model: what the caller holds (perhaps wrapped).
        session: while one is open on the model.
        found: what the feature came out as, for the references that need its tokens.
        kept: whatever a feature wants to keep from building its model.
    """

    family: Family
    kind: str
    model: Any
    session: Session | None = None
    found: list[Tensor] = field(default_factory=list[Tensor])
    kept: dict[str, Any] = field(default_factory=dict[str, Any])

    @property
    def spec(self) -> dict[str, Any]:
        return representatives()[self.kind]

    @contextmanager
    def opened(self) -> Generator[None]:
        """With the strategy on the model."""
        with trim(self.model, self.spec) as session:
            self.session = session
            yield
        self.session = None

    @contextmanager
    def other(self, model: Any) -> Generator[Any]:
        """The same strategy, or none at all where this bench has no session, on another model."""
        if self.session is None:
            yield model
            return
        with trimmed(model, self.spec, {}):
            yield model

    def prompt(self, *layouts: Layout, **options: Any) -> dict[str, Any]:
        return self.family.prompt(unwrapped(self.model)[0], *layouts, **options)

    def one(self) -> dict[str, Any]:
        """The family's usual prompt of one row."""
        return self.prompt(self.family.row)

    def generate(self, inputs: dict[str, Any], *, model: Any = None, new: int = NEW, **options: Any) -> list[Tensor]:
        """[new tokens [R, G], their logits [R, G, V]]."""
        out = (self.model if model is None else model).generate(
            **inputs,
            **{"do_sample": False, **options},
            max_new_tokens=new,
            return_dict_in_generate=True,
            output_logits=True,
        )
        return [out.sequences[:, inputs["input_ids"].shape[1] :], torch.stack(out.logits, dim=1)]

    def said(self, inputs: dict[str, Any], tokens: Tensor, *, model: Any = None) -> Tensor:
        """[G, V]: logits of a prompt of one row that is answered by ``tokens`` [G], one decode forward each."""
        start = inputs["input_ids"].shape[1]
        processors = LogitsProcessorList([Say(tokens, start)])
        return self.generate(inputs, model=model, new=len(tokens), logits_processor=processors)[1][0]

    def masked(self, inputs: dict[str, Any], tokens: Tensor, *, sample: int = 0) -> Tensor:
        """[T + G, V]: the same by the untouched model, with masks where the session's latest trace dropped."""
        assert self.session is not None
        trace, inner = self.session.trace, unwrapped(self.model)[0]
        visual = self.family.visual(inner, inputs)[0]
        with self.paused():
            return masked_logits(
                inner, inputs, tokens, trace, visual=visual, sample=sample, renumber=self.kind == "renumber"
            )

    @contextmanager
    def paused(self) -> Generator[None]:
        """With the strategy off the model for a while."""
        assert self.session is not None
        self.session.__exit__(None, None, None)
        try:
            yield
        finally:
            self.session.__enter__()

    def reference(self, inputs: dict[str, Any], tokens: Tensor) -> Tensor:
        """[G, V]: masked logits of an answer; of merging strategies, which no mask can imitate, said ones."""
        if self.kind == "merging":
            return self.said(inputs, tokens)
        return self.masked(inputs, tokens[:-1])[inputs["input_ids"].shape[1] - 1 :]
