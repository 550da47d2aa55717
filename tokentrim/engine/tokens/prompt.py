"""Prompt: everything the engine remembers of one prompt, from its first forward to its last decode step."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Final, TypeVar
from weakref import WeakSet

import torch
from torch import Tensor

from tokentrim.contracts.answers import blamed, name_of
from tokentrim.contracts.sites import Grid
from tokentrim.contracts.strategy import Spatial, Temporal
from tokentrim.engine.tokens.placement import Placement, encoded_elsewhere
from tokentrim.engine.tokens.stream import Stream
from tokentrim.engine.tokens.trace import Trace
from tokentrim.errors import EngineError, StrategyError, UnsupportedError, complaint

T = TypeVar("T")
TEMPORAL: Final = -1
"""Place of the temporal part; spatial parts are numbered from 0, in declaration order."""


@dataclass(eq=False)
class Kin:
    """A prompt and its copies.

    Attributes:
        caches: that hold one of them: a first layer, or a cache of the model's own.
        continued: whether a copy has been continued.
    """

    caches: WeakSet[Any] = field(default_factory=WeakSet[Any])
    continued: bool = False


@dataclass(eq=False)  # a prompt is itself: tensors have no truth value
class Prompt:
    """One prompt (a batch of rows) and its decode steps.

    Attributes:
        length: columns of the prompt before pruning.
        start: the whole prompt's stream.
        spatial: deciders of the prefill, in declaration order.
        temporal: decider of the decode steps, or None.
        sample_keys: int64 [B], content keys that seed noise.
        is_active: whether the context that this prompt belongs to is still open.
        n_layers: decoder layers.
        new_tokens: the most that the call of ``generate`` will append, where that is known.
        tokens: int64 [B, T_prompt], the prompt's numbers in the vocabulary, where the caller gave them.
        evidence: float [B, N] relevance supplied by the caller, or None.
        guided: float [B, N], what a guide attended to, or None where there is none.
        guide_flops: FLOPs that the guide took for each row.
        exited: rows whose answer is the guide's.
        skipped: whether all of them are, so that no layer of the trimmed model runs.
        place: makes :attr:`placement`.
        states: what each part's ``begin`` returned, by the part's place in the strategy.
        step: decode forwards run so far.
        appended_valid: bool [B, A] of appended columns, None while all are real.
        shown: bool [B, T_prompt], columns of the prompt that the running forward may see; None where it may see all
            but padding.
        call: the call of ``generate`` whose mask has been read.
        trace: what was kept where.
        tower_pairs: pairs of tokens that merged in each block of the vision tower; empty = none.
        held: per decode step, per layer, visual entries of each row.
        seen: likewise, of those the ones that attention saw; empty where it sees all.
        kin: what it shares with copies of itself.
        begins: told of a copy when it is first continued.
        inherited: (steps, selections) of a copy that were made before it was copied; None for what is no copy.
        cut_short: whether a decode forward has begun and not ended.
        new_lengths: tokens that each row's answer really has, where the caller said so.
    """

    length: int
    start: Stream
    spatial: tuple[Spatial, ...]
    temporal: Temporal | None
    sample_keys: Tensor
    is_active: Callable[[], bool]
    n_layers: int
    new_tokens: int | None = None
    tokens: Tensor | None = None
    evidence: Tensor | None = None
    guided: Tensor | None = None
    guide_flops: tuple[int, ...] = ()
    exited: tuple[int, ...] = ()
    skipped: bool = False
    place: Callable[[], Placement | None] = field(default=lambda: None, repr=False)
    states: dict[int, Any] = field(default_factory=dict[int, Any])
    step: int = 0
    appended_valid: Tensor | None = None
    shown: Tensor | None = None
    call: object = None
    trace: Trace | None = None
    events: int = 0
    layer_counts: list[tuple[int, ...]] = field(default_factory=list[tuple[int, ...]])
    visual_pairs: list[tuple[int, ...]] = field(default_factory=list[tuple[int, ...]])
    tower_pairs: tuple[int, ...] = ()
    held: list[list[tuple[int, ...]]] = field(default_factory=list[list[tuple[int, ...]]])
    seen: list[list[tuple[int, ...]]] = field(default_factory=list[list[tuple[int, ...]]])
    appended: list[int] = field(default_factory=list[int])
    kin: Kin = field(default_factory=lambda: Kin())
    begins: Callable[[Prompt], None] = field(default=lambda _: None, repr=False)
    inherited: tuple[int, int] | None = None
    cut_short: bool = False
    new_lengths: Sequence[int] | None = None
    _valid: Tensor | None = None
    _memo: tuple[Tensor, dict[int, tuple[Any, Any]]] | None = None
    _repeat: tuple[int, int, Tensor] | None = None

    def __post_init__(self) -> None:
        self._valid = self.start.valid

    @cached_property
    def placement(self) -> Placement | None:
        """Which token of which picture each placeholder is; None where that is unknown. Made on first use."""
        return self.place()

    def forget_placement(self) -> None:
        """The prompt has become longer than what its placement was made for."""
        self.place = lambda: None
        self.__dict__.pop("placement", None)

    @property
    def n_text(self) -> tuple[int, ...]:
        """Real text tokens of each row."""
        return tuple(real - n for real, n in zip(self.start.real, self.start.n_visual, strict=True))

    def grid(self, ids: Tensor | None = None, valid: Tensor | None = None) -> Grid:
        """The grid of the current tokens ``ids`` [B, N], or of all visual tokens.

        Raises:
            UnsupportedError: when the pictures were encoded outside the context, and differ in size.
        """
        if self.placement is None:
            raise encoded_elsewhere("the visual grid")
        start = self.start if ids is None else self.start.on(ids.device)
        where = start.vis_pos if ids is None else start.vis_pos.gather(1, ids)
        return self.placement.grid(where, start.vis_valid if valid is None else valid)

    def state_of(self, place: int) -> Any:
        """What the part at ``place`` of the strategy (or ``TEMPORAL``) remembers.

        Raises:
            EngineError: when no part there was asked to begin.
        """
        if place not in self.states:
            raise EngineError(
                complaint("the state of a part", f"be that of one of {sorted(self.states)}", place,
                          "please report this strategy")
            )  # fmt: skip
        return self.states[place]

    def guided_at(self, ids: Tensor) -> Tensor:
        """float32 [B, N]: what a guide attended to, of the current tokens ``ids`` [B, N].

        Raises:
            StrategyError: when no guide was asked.
        """
        if self.guided is None:
            raise StrategyError(
                complaint("a strategy that reads a guide", "name one", None, "return a GuideRequest from wants_guide()")
            )
        return self.guided.to(ids.device).gather(1, ids)

    def evidence_at(self, ids: Tensor) -> Tensor:
        """float [B, N]: relevance of the current tokens ``ids`` [B, N].

        Raises:
            StrategyError: when the prompt came without evidence.
        """
        if self.evidence is None:
            raise StrategyError(
                complaint("a strategy that reads evidence", "be given it before each prompt", None,
                          "call session.annotate(evidence=...); only tasks that know the answer's place can")
            )  # fmt: skip
        return self.evidence.to(ids.device).gather(1, ids)

    def exit(self, rows: tuple[int, ...], scores: Sequence[float], *, skipped: bool) -> None:
        """Note the rows that a guide answers; where it answers all of them, no layer sees a token."""
        self.exited, self.skipped = rows, skipped
        if self.trace is not None:
            self.trace.exited, self.trace.exit_scores = rows, tuple(scores)
        if skipped:
            self.events += 1
            self.layer_counts = [(0,) * self.start.rows] * self.n_layers
            if self.trace is not None:
                self.trace.prefill.append((0, self.start.vis_ids[:, :0]))

    def require_active(self) -> None:
        """Raise UnsupportedError once the context has been left."""
        if not self.is_active():
            raise UnsupportedError(
                complaint(
                    "a trimmed KV cache",
                    "be used inside the context that filled it",
                    "the context is closed",
                    "continue inside 'with trim(model, ...)', or start the prompt again without a cache",
                )
            )

    def reordered_shift(self, shift: Tensor, index: Tensor) -> Tensor:
        """``shift`` [B] with rows ``index``; layers that share one go on sharing it."""
        return self._once(shift, index, lambda: shift.index_select(0, index.to(shift.device)))

    def reordered(self, stream: Stream, index: Tensor) -> Stream:
        """``stream`` with rows ``index``; layers that share a stream go on sharing one."""
        return self._once(stream, index, lambda: stream.select_rows(index))

    def note_rows(self, layer: int, stream: Stream) -> None:
        """Tell the trace what rows ``layer`` will hold from the next step on; rows that never evicted are alike."""
        if self.trace is not None and layer in self.trace.evictions:
            self.trace.evictions[layer].append((self.step + 1, stream.vis_ids))

    def _once(self, old: T, index: Tensor, make: Callable[[], T]) -> T:
        """What this very reordering makes of ``old`` (one call reorders every layer in turn)."""
        if self._memo is None or self._memo[0] is not index:
            self._memo = (index, {})
            for name in ("appended_valid", "shown", "_valid"):
                if (marks := getattr(self, name)) is not None:
                    setattr(self, name, marks.index_select(0, index.to(marks.device)))
            for place, state in self.states.items():
                if hasattr(state, "select_rows"):
                    part = self.temporal if place == TEMPORAL else self.spatial[place]
                    with blamed(lambda part=part: f"{name_of(part)!r}, whose state follows its rows,"):
                        state.select_rows(index)
        known = self._memo[1]
        if id(old) not in known:
            known[id(old)] = (old, make())
        return known[id(old)][1]

    def repeat_index(self, rows: int, repeats: int, device: torch.device) -> Tensor:
        """int64 [rows * repeats]: each row ``repeats`` times; the same object for all layers of one call."""
        if self._repeat is None or self._repeat[:2] != (rows, repeats):
            index = torch.arange(rows, device=device).repeat_interleave(repeats)
            self._repeat = (rows, repeats, index)
        return self._repeat[2]

    def __deepcopy__(self, memo: dict[int, Any]) -> Prompt:
        """What a copy of the cache remembers: all that changes from here on is its own, the rest is shared."""
        copied = object.__new__(Prompt)
        memo[id(self)] = copied
        memo.update({id(part): part for part in (*self.spatial, self.temporal)})
        vars(copied).update(vars(self))
        for name in ("states", "trace", "held", "seen", "appended"):
            setattr(copied, name, copy.deepcopy(getattr(self, name), memo))
        copied._memo = copied._repeat = copied.new_lengths = copied.call = None
        copied.inherited = (self.step, self.events)
        return copied

    @property
    def own_steps(self) -> int:
        """Decode forwards, those not counted that a copy shares."""
        return self.step - (self.inherited or (0, 0))[0]

    @property
    def own_events(self) -> int:
        """Selections likewise."""
        return self.events - (self.inherited[1] if self.inherited else 0)

    def require_whole(self) -> None:
        """Raise UnsupportedError once the context has been left, or a forward on the cache was cut short."""
        self.require_active()
        if self.cut_short:
            raise UnsupportedError(
                complaint(
                    "a trimmed KV cache",
                    "have the same tokens in every layer",
                    "a forward that was cut short by an exception",
                    "start the prompt again without a cache",
                )
            )

    def begin_step(self, mask: Tensor | None, columns: int, rows: int, call: object = None) -> None:
        """Count a decode forward of ``columns`` new columns.

        Args:
            mask: [B, all columns so far], 0 at those that the forward may not see; None when it may see all.
            columns: new ones.
            rows: B.
            call: the call of ``generate`` that runs it, which only adds ones to its mask: that is read once per call.

        Raises:
            UnsupportedError: when the mask has another shape.
        """
        behind = sum(self.appended) + columns
        if call is None or call is not self.call:
            self._see(mask, rows, behind)
        elif self.appended_valid is not None:
            more = self.appended_valid.new_ones(rows, columns)
            self.appended_valid = torch.cat([self.appended_valid, more], dim=1)
        self.call = call
        if self.inherited and not self.own_steps:
            self.kin.continued = True
            self.begins(self)
        self.step, self.cut_short = self.step + 1, True
        self.appended.append(columns)

    def _see(self, mask: Tensor | None, rows: int, behind: int) -> None:
        """Read a mask of the prompt's columns and so many ``behind`` it."""
        if mask is None:
            self.shown = self.appended_valid = None
            return
        if tuple(mask.shape) != (rows, self.length + behind):
            raise UnsupportedError(
                complaint(
                    "attention_mask over a trimmed cache",
                    f"be {[rows, self.length + behind]}: all columns of the prompt, dropped ones too, and all since",
                    list(mask.shape),
                    "append ones to the mask of the prompt, one per new token",
                )
            )
        mask = mask.to(self.start.vis_pos.device, torch.bool)
        front, after = mask[:, : self.length], mask[:, self.length :]
        hidden = ~front if self._valid is None else self._valid & ~front
        hides, pads = torch.stack([hidden.any(), ~after.all()]).tolist()
        self.shown, self.appended_valid = front if hides else None, after if pads else None

    def cropped(self, appended: int) -> None:
        """The cache was rolled back to ``appended`` columns behind the prompt."""
        if self.appended_valid is not None:
            self.appended_valid = self.appended_valid[:, :appended]
        while self.appended and sum(self.appended) > appended:
            surplus = sum(self.appended) - appended
            if self.appended[-1] > surplus:
                self.appended[-1] -= surplus
            else:
                self.appended.pop()
