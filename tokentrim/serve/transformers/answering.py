"""Answers under a strategy: one session for each request, so that its report is of this very request."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final

import torch
from transformers import StoppingCriteriaList

from tokentrim.config.specs import Budget, StrategySpec, resolve
from tokentrim.contracts.adapter import Adapter, Layout
from tokentrim.contracts.strategy import Strategy
from tokentrim.engine.report import Report
from tokentrim.loading import Loaded
from tokentrim.runs.batches import visual_tokens
from tokentrim.runs.stopping import StopsAtText
from tokentrim.serve.transformers.requests import Inquiry
from tokentrim.session import Session, located, session_with

_KEPT_SOLVED: Final = 256


@dataclass
class Served:
    """A loaded model, and the strategy under which it answers who names no other.

    Attributes:
        name: the model as clients name it.
        loaded: model and processor.
        spec: the strategy, perhaps with a budget.
        solved: strategies whose knob was solved, by budget and number of visual tokens.
    """

    name: str
    loaded: Loaded
    spec: StrategySpec
    solved: dict[tuple[Budget, int], Strategy] = field(default_factory=dict[tuple[Budget, int], Strategy])

    def __post_init__(self) -> None:
        """Find where things are in the model, and let the strategy prove that it can serve it, with its guide loaded.

        Raises:
            TokentrimError: when it cannot.
        """
        self.found: tuple[Adapter, Layout] = located(self.loaded.model)
        with self.session(self.spec):
            pass

    def session(self, spec: StrategySpec | Strategy) -> Session:
        """A session for one request."""
        return session_with(self.loaded.model, spec, self.found, record=False, structure=self.spec.structure)

    def strategy_for(self, asked: Inquiry, inputs: dict[str, Any]) -> Strategy:
        """The strategy of a request, its knob solved for what the prompt holds where there is a budget."""
        if asked.spec.budget is None or not asked.pictures:
            return asked.spec.strategy
        structured = [] if self.spec.structure == "prune" else asked.pictures
        n_visual = visual_tokens(self.loaded, inputs, [structured])[0]
        key = (asked.spec.budget, n_visual)
        if key not in self.solved:
            while len(self.solved) >= _KEPT_SOLVED:
                self.solved.pop(next(iter(self.solved)))
            self.solved[key] = resolve(asked.spec, self.found[1].shape, n_visual)
        return self.solved[key]


class TrimmedModel:
    """Stands for the model while one request is answered: its ``generate`` runs under the strategy."""

    def __init__(self, served: Served, asked: Inquiry) -> None:
        self._served, self._asked = served, asked

    def __getattr__(self, name: str) -> Any:
        return getattr(self._served.loaded.model, name)

    def generate(self, *, streamer: Any = None, **inputs: Any) -> Any:
        """What the model generates; notes what was kept, or what went wrong."""
        served, asked = self._served, self._asked
        asked.begun = True
        if asked.stops:
            ended = StopsAtText(asked.stops, self._text, inputs["input_ids"].shape[1])
            inputs["stopping_criteria"] = StoppingCriteriaList([ended])
        try:
            if asked.seed is not None:
                torch.manual_seed(asked.seed)  # here, where no other request can draw in between
            with served.session(served.strategy_for(asked, inputs)) as session:
                output = served.loaded.model.generate(**inputs, streamer=streamer and _Held(streamer))
            asked.kept = kept_of(session.report())
        except Exception as error:
            asked.failure = error
            raise
        if streamer is not None:
            streamer.end()
        return output

    def _text(self, tokens: Any) -> str:
        return self._served.loaded.processor.tokenizer.decode(tokens, skip_special_tokens=True)


class _Held:
    """A streamer that is told of tokens, and not of the end: the report is made first."""

    def __init__(self, streamer: Any) -> None:
        self._streamer = streamer

    def put(self, value: Any) -> None:
        self._streamer.put(value)

    def end(self) -> None:
        """Wait for the report."""


def kept_of(report: Report) -> dict[str, Any]:
    """What of a report a client is told."""
    return {
        "strategy": report.strategy,
        "visual_tokens": round(report.n_visual),
        "kept_mean": round(report.layer_mean_tokens, 2),
        "kept_ratio": round(report.layer_mean_ratio, 4),
        "flops_ratio": round(report.flops_ratio, 4),
        "kv_ratio": round(report.kv_mean_ratio, 4),
        "kv_end_ratio": round(report.kv_end_ratio, 4),
        "kv_bytes": round(report.kv_mean_bytes),
        "prefill_ms": round(1000 * report.prefill_seconds, 1),
        "decode_ms": round(1000 * report.decode_seconds, 1),
        "notes": report.notes,
    }
