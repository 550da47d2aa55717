"""One strategy on one small model: every run that several checks look at is made once."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import torch
from torch import Tensor

from tokentrim.config.specs import Spec, StrategySpec, resolve, strategy_from
from tokentrim.contracts.sites import Need
from tokentrim.contracts.strategy import Strategy
from tokentrim.counting.shape import ModelShape
from tokentrim.engine.report import Report
from tokentrim.engine.tokens.cache import TrimLayer
from tokentrim.engine.tokens.trace import Trace
from tokentrim.errors import StrategyError, UnsupportedError
from tokentrim.selftest.subject import Subject, answered, generate, state
from tokentrim.session import Session, session_with
from tokentrim.testing.outcome import STRATEGIES, Skipped, require
from tokentrim.testing.subjects import small_model
from tokentrim.testing.supplies import evidence_for, with_weights
from tokentrim.testing.watching import Look, SeenCall, Watched

STEPS: Final = 8
"""New tokens of a run: seven decode forwards."""
_SCORE_TOLERANCE: Final = 1e-3


@dataclass(frozen=True)
class CaseRun:
    """A greedy generation under a strategy.

    Attributes:
        inputs: the prompt.
        ids: int64 [B, n], the new tokens.
        logits: float [B, n, V], theirs.
        trace: what was kept.
        report: what was spent.
        held: per layer (entries that the cache stores, its logical length, its bytes) at the end.
    """

    inputs: dict[str, Any]
    ids: Tensor
    logits: Tensor
    trace: Trace
    report: Report
    held: tuple[tuple[int, int, int], ...]


class Subjected:
    """A subject, and what it is without any strategy.

    Attributes:
        subject: the subject.
        state: of its model.
    """

    def __init__(self, subject: Subject) -> None:
        self.subject = subject
        self._plain: dict[tuple[int, ...], tuple[Tensor, Tensor]] = {}
        self.plain(0)  # transformers leaves hooks of its own in the first forward
        self.state = state(subject.model)

    def plain(self, *rows: int) -> tuple[Tensor, Tensor]:
        """(ids, logits) of the untouched model."""
        if rows not in self._plain:
            self._plain[rows] = generate(self.subject.model, self.subject.prompt(*rows), STEPS)
        return self._plain[rows]


@functools.cache
def subjected(subject: Subject) -> Subjected:
    """The one companion of a shared subject, made before any strategy ran on it."""
    return Subjected(subject)


@dataclass
class Case:
    """A strategy under test.

    Attributes:
        spec: as the author gave it.
        family: of the small model; None = the default one.
    """

    spec: StrategySpec
    family: str | None = None
    _runs: dict[tuple[Any, ...], CaseRun | Exception] = field(
        default_factory=dict[tuple[Any, ...], CaseRun | Exception]
    )
    _seen: list[SeenCall] | None = None

    @classmethod
    def of(cls, spec: Spec, family: str | None = None) -> Case:
        """The case of a specification.

        Raises:
            ConfigError: when it means no strategy.
        """
        return cls(strategy_from(spec), family)

    @property
    def given(self) -> Strategy:
        """The author's object; a budget is not solved yet."""
        return self.spec.strategy

    @property
    def label(self) -> str:
        """Short text for names and messages."""
        return self.given.label()

    @property
    def subject(self) -> Subject:
        """The small model."""
        return subjected(small_model(self.family)).subject

    @property
    def shape(self) -> ModelShape:
        """Its numbers."""
        return self.subject.layout.shape

    @property
    def whom(self) -> str:
        """The strategy, for messages."""
        return f"strategy {self.label!r}"

    @property
    def n_visual(self) -> int:
        """Visual tokens of prompt 0."""
        return int(self.subject.visual(self.subject.prompt(0)).sum())

    @property
    def strategy(self) -> Strategy:
        """The strategy as it runs: its budget solved, trainable parts with random weights unless they name some."""
        return with_weights(resolve(self.spec, self.shape, self.n_visual), self.shape)

    @property
    def acts(self) -> bool:
        """Whether there is anything that decides or edits."""
        parts = self.given.parts()
        return bool(parts.spatial or parts.temporal or parts.attention)

    @property
    def edits_values(self) -> bool:
        """Whether masks alone cannot express it: tokens merge, or attention itself is edited."""
        parts = self.given.parts()
        return any(part.merges for part in parts.deciders) or parts.attention is not None

    # ------------------------------------------------------------------ runs

    def session(
        self, strategy: Strategy | None = None, inputs: dict[str, Any] | None = None, model: Any = None
    ) -> Session:
        """A session of ``strategy`` (default: the one under test) that is ready for the prompt ``inputs``.

        On the subject's model, or another like it.
        """
        chosen = self.strategy if strategy is None else strategy
        subject = self.subject
        host, layout = subject.on(model)
        asks = any(part.wants_guide() is not None for part in chosen.spatial_parts)
        session = session_with(host, chosen, (subject.adapter, layout), guide=host if asks else None)
        if inputs is not None and Need.EVIDENCE in chosen.needed():
            ids: Tensor = inputs["input_ids"]
            mask: Tensor = inputs.get("attention_mask", torch.ones_like(ids))
            session.annotate(evidence=evidence_for(ids, subject.visuals(inputs), mask.bool()))
        return session

    def run(self, *rows: int, strategy: Strategy | None = None, key: str = "") -> CaseRun:
        """A generation, made once per rows (and ``key``, which names another strategy than the one under test).

        Raises:
            Skipped: when it cannot be made; the check ``runs`` says why.
        """
        made = self.attempt(*rows, strategy=strategy, key=key)
        if isinstance(made, Exception):
            raise Skipped("it did not run: see the check 'runs'") from made
        return made

    def attempt(self, *rows: int, strategy: Strategy | None = None, key: str = "") -> CaseRun | Exception:
        """The same, or what was raised."""
        if (rows, key) not in self._runs:
            try:
                self._runs[rows, key] = self.fresh(*rows, strategy=strategy)
            except Exception as error:  # a stranger's strategy may raise anything
                self._runs[rows, key] = error
        return self._runs[rows, key]

    def fresh(self, *rows: int, strategy: Strategy | None = None, session: Session | None = None) -> CaseRun:
        """A generation, made anew; in a session that is entered already, where one is given."""
        inputs = self.subject.prompt(*rows)
        if session is not None:
            return _generated(session, self.subject.model, inputs)
        with self.session(strategy, inputs) as opened:
            return _generated(opened, self.subject.model, inputs)

    def seen(self) -> Sequence[SeenCall]:
        """Every decision of one generation of all rows.

        Raises:
            Skipped: when it does not run.
        """
        if self._seen is None:
            self._seen = self.watch()
        return self._seen

    def watch(self, look: Look | None = None) -> list[SeenCall]:
        """Every decision of one generation of all rows, each shown to ``look``."""
        self.run(0, 1, 2)
        watched = Watched.of(self.strategy, look)
        self.fresh(0, 1, 2, strategy=watched)
        return watched.seen

    def require_served(self) -> None:
        """Skip where this model cannot serve the strategy, which is no fault of either.

        Raises:
            Skipped: with the refusal.
        """
        try:
            self.session()
        except (UnsupportedError, StrategyError) as refusal:
            raise Skipped(f"refused on this model: {refusal}") from refusal

    def require(
        self, holds: object, what: str, must: str, *got: object, hint: str = "", see: str = f"{STRATEGIES}#test-it"
    ) -> None:
        """Raise Failed in the house grammar unless ``holds``."""
        require(holds, f"{what} of {self.whom}", must, *got, hint=hint, see=see)


def _generated(session: Session, model: Any, inputs: dict[str, Any]) -> CaseRun:
    ids, logits, cache = answered(model, inputs, STEPS)
    trace = session.trace
    held = tuple(_held(layer) for layer in cache.layers)
    return CaseRun(inputs, ids, logits, trace, session.report(), held)


def _held(layer: Any) -> tuple[int, int, int]:
    keys: Tensor = layer.keys
    values: Tensor = layer.values
    logical = layer.get_seq_length() if isinstance(layer, TrimLayer) else int(keys.shape[2])
    return int(keys.shape[2]), int(logical), int(keys.nbytes + values.nbytes)


@dataclass(frozen=True)
class Beam:
    """The best of two beams of one row.

    Attributes:
        ids: its new tokens.
        score: mean log-probability.
    """

    ids: tuple[int, ...]
    score: float

    def is_like(self, other: Beam) -> bool:
        """Whether both are the same but for rounding."""
        return self.ids == other.ids and abs(self.score - other.score) < _SCORE_TOLERANCE

    def __str__(self) -> str:
        """Text for messages."""
        return f"{list(self.ids)} with score {self.score:.4f}"


def best_beams(model: Any, inputs: dict[str, Any]) -> list[Beam]:
    """The best of two beams of every row of a prompt."""
    out = model.generate(
        **inputs, max_new_tokens=4, num_beams=2, do_sample=False, return_dict_in_generate=True, output_scores=True
    )
    new = out.sequences[:, inputs["input_ids"].shape[1] :]
    return [Beam(tuple(ids), score) for ids, score in zip(new.tolist(), out.sequences_scores.tolist(), strict=True)]
