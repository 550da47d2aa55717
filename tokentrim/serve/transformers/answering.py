"""Answers under a strategy: one session for each request, so that its report is of this very request."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from inspect import signature
from typing import Any, Final

import torch
from transformers import StoppingCriteria, StoppingCriteriaList

from tokentrim.config.specs import Budget, StrategySpec
from tokentrim.contracts.adapter import Adapter, Layout
from tokentrim.contracts.strategy import Strategy
from tokentrim.counting.forecast import NEW_TOKENS
from tokentrim.engine.report import Report
from tokentrim.errors import DataError, complaint
from tokentrim.loading import Loaded, takes_videos
from tokentrim.runs.batches import visual_tokens
from tokentrim.runs.stopping import StopsAtText
from tokentrim.serve.transformers.requests import Inquiry, ModelLimits
from tokentrim.session import Session, located, session_with

_KEPT_SOLVED: Final = 256
_USUAL: Final = 1024
"""New tokens of an answer whose request names no limit."""

_MOST: Final = 32768
"""Positions of a model that does not say how many it has."""


class Ended(Exception):
    """Nobody waits for an answer any more."""


@dataclass
class Served:
    """A loaded model, and the strategy under which it answers who names no other.

    Attributes:
        name: the model as clients name it.
        loaded: model and processor.
        spec: the strategy, perhaps with a budget.
        solved: strategies whose knob was solved, by budget, number of visual tokens, and new tokens.
    """

    name: str
    loaded: Loaded
    spec: StrategySpec
    solved: dict[tuple[Budget, int, int], Strategy] = field(default_factory=dict[tuple[Budget, int, int], Strategy])

    def __post_init__(self) -> None:
        """Find where things are in the model, and let the strategy prove that it can serve it, with its guide loaded.

        Raises:
            TokentrimError: when it cannot.
        """
        self.found: tuple[Adapter, Layout] = located(self.loaded.model)
        with self.session(self.spec):
            pass
        model: Any = self.loaded.model
        text = model.config.get_text_config()
        most: int = getattr(text, "max_position_embeddings", None) or _MOST
        usual = min(max(_USUAL, model.generation_config.max_new_tokens or 0), most)
        processor = self.loaded.processor
        template = str(getattr(processor, "chat_template", None) or "")  # of several, all of them
        self.limits = ModelLimits(usual, most, text.vocab_size, takes_videos(processor), template)

    def bound(self, asked: Inquiry, inputs: Mapping[str, Any], config: Any) -> None:
        """Hold an answer to the positions that its prompt leaves.

        Args:
            asked: the request.
            inputs: its prompt, as the model takes it.
            config: how it is generated, of transformers.

        Raises:
            DataError: when the prompt leaves none, or fewer than the request names.
        """
        length = self._positions(asked, inputs)
        left, most = self.limits.most - length, self.limits.most
        if left < 1:
            hint = "say less, or send fewer or smaller pictures"
            raise DataError(complaint("the prompt", f"leave some of the model's {most} positions", length, hint))
        if asked.named and asked.limit > left:
            must = f"be at most {left}: of the model's {most} positions the prompt takes {length}"
            raise DataError(complaint(f"{asked.named} of the request", must, asked.limit))
        asked.limit = config.max_new_tokens = min(asked.limit, left)

    def _positions(self, asked: Inquiry, inputs: Mapping[str, Any]) -> int:
        """How many a prompt takes up: one for each token, but what the model counts of pictures under M-RoPE."""
        model: Any = self.loaded.model
        count = getattr(getattr(model, "model", None), "get_rope_index", None)
        if not (self.found[1].mrope and asked.shown and count):
            return int(inputs["input_ids"].shape[-1])
        counted, _ = count(**{name: inputs[name] for name in signature(count).parameters if name in inputs})
        return int(counted.max()) + 1

    def session(self, spec: StrategySpec | Strategy) -> Session:
        """A session for one request."""
        return session_with(self.loaded.model, spec, self.found, record=False, structure=self.spec.structure)

    def strategy_for(self, asked: Inquiry, inputs: dict[str, Any]) -> Strategy:
        """The strategy of a request, its knob solved for what the prompt holds where there is a budget."""
        if asked.spec.budget is None or not asked.shown:
            return asked.spec.strategy
        structured = [] if self.spec.structure == "prune" else asked.pictures
        n_visual = visual_tokens(self.loaded, inputs, [structured])[0]
        ratios = asked.spec.budget.model_dump()
        # What is cached hangs on how far the answer may go; the rest is spent before it begins.
        cached = any(ratio is not None and name.startswith("kv_") for name, ratio in ratios.items())
        new_tokens = asked.limit if cached else NEW_TOKENS
        key = (asked.spec.budget, n_visual, new_tokens)
        if key not in self.solved:
            while len(self.solved) >= _KEPT_SOLVED:
                self.solved.pop(next(iter(self.solved)))
            shape = self.found[1].shape
            self.solved[key], _ = asked.spec.strategy.at_budget(shape, n_visual, **ratios, new_tokens=new_tokens)
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
        ends = StoppingCriteriaList([_Wanted(asked)])
        if asked.stops:
            ends.append(StopsAtText(asked.stops, self._text, inputs["input_ids"].shape[1]))
        try:
            require_wanted(asked)
            if asked.seed is not None:
                torch.manual_seed(asked.seed)  # here, where no other request can draw in between
            with served.session(served.strategy_for(asked, inputs)) as session:
                output = served.loaded.model.generate(
                    **inputs, streamer=streamer and _Held(streamer), stopping_criteria=ends
                )
            asked.kept = kept_of(session.report())
        except Exception as error:
            asked.failure = error
            raise
        if streamer is not None:
            streamer.end()
        return output

    def _text(self, tokens: Any) -> str:
        return self._served.loaded.processor.tokenizer.decode(tokens, skip_special_tokens=True)


def require_wanted(asked: Inquiry) -> None:
    """Look whether somebody waits for the answer still.

    Raises:
        Ended: when nobody does.
    """
    if asked.ended:
        raise Ended(asked.ended)


class _Wanted(StoppingCriteria):
    """Ends no answer by itself, but breaks off one that nobody waits for."""

    def __init__(self, asked: Inquiry) -> None:
        self._asked = asked

    def __call__(self, input_ids: Any, scores: Any, **kwargs: Any) -> Any:
        """Of no row [B] that it has come to its end."""
        require_wanted(self._asked)
        return torch.zeros(input_ids.shape[0], dtype=torch.bool, device=input_ids.device)


class _Held:
    """A streamer that is told of tokens, and not of the end: the report is made first."""

    def __init__(self, streamer: Any) -> None:
        self._streamer = streamer

    def put(self, value: Any) -> None:
        self._streamer.put(value)

    def end(self) -> None:
        """Wait for the report."""


def kept_of(report: Report) -> dict[str, Any]:
    """What of a report a client is told; what is measured at visual tokens is None of a prompt without any."""
    pruned = report.n_visual > 0
    return {
        "strategy": report.strategy,
        "visual_tokens": round(report.n_visual),
        "kept_mean": round(report.layer_mean_tokens, 2),
        "kept_ratio": round(report.layer_mean_ratio, 4),
        "flops_ratio": round(report.flops_ratio, 4),
        "kv_ratio": round(report.kv_mean_ratio, 4),
        "kv_end_ratio": round(report.kv_end_ratio, 4),
        "kv_read_ratio": round(report.kv_read_ratio, 4),
        "kv_bytes": round(report.kv_mean_bytes) if pruned else None,
        "prefill_ms": round(1000 * report.prefill_seconds, 1) if pruned else None,
        "decode_ms": round(1000 * report.decode_seconds, 1) if pruned else None,
        "notes": report.notes,
    }
