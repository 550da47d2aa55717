"""``replay``: decide exactly as a recorded run did."""

from __future__ import annotations

from abc import ABC
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import torch
from pydantic import Field, PrivateAttr
from torch import Tensor

from tokentrim import (
    LayerSite,
    ModelShape,
    Parts,
    PositionPolicy,
    PromptInfo,
    Schedule,
    Selection,
    SpatialSelector,
    Stage,
    StepSite,
    Strategy,
    StrategyError,
    TemporalSelector,
    Trace,
    complaint,
)


class Replay(Strategy):
    """Keep what a trace says was kept: the same sets per sample at each boundary, and in the cache at each step.

    Row r of the prompt takes sample r of the trace. It separates *what* a method decides from what deciding costs,
    repeats a run without its scores, and lets sets found elsewhere be tried (build a trace, ``Replay.of(trace)``).
    After the trace's last step the cached sets stay as they were then.

    When it fails: on a model with another number of layers and on a prompt with other numbers of visual tokens it
    raises, and so it does on a trace of a run that edited attention (``yopo``). Merging is not recorded: of a merging
    strategy it replays the representatives, not their values. Cost: none.

    Parameters: ``file``, a trace saved as safetensors; ``positions`` as in the recorded strategy.
    """

    name: ClassVar[str] = "replay"
    stage: ClassVar[Stage] = "prefill"
    count_is_static: ClassVar[bool] = False

    file: Path | None = Field(default=None, description="trace file (safetensors) whose decisions are repeated")
    positions: PositionPolicy = Field(default="keep", description="position ids of kept tokens after pruning")
    _given: Trace | None = PrivateAttr(default=None)

    @classmethod
    def of(cls, trace: Trace, positions: PositionPolicy = "keep") -> Replay:
        """The strategy that repeats ``trace``.

        Raises:
            DataError: when no run records such a trace.
        """
        trace.check("the trace of strategy 'replay'")
        replay = cls(positions=positions)
        replay._given = trace
        return replay

    @property
    def trace(self) -> Trace:
        """The trace as given, or else read from the file (anew at every use: a strategy holds no state)."""
        if self._given is not None:
            return self._given
        if self.file is None:
            what, must = "file of strategy 'replay'", "name a saved trace"
            raise StrategyError(complaint(what, must, self.file, "set file, or use Replay.of(trace)"))
        return Trace.load(self.file)

    def parts(self) -> Parts:
        """One spatial part where the trace pruned at all, and a temporal one where it evicted."""
        trace = self.trace
        if trace.edits:
            what, must = "the trace under strategy 'replay'", "say all that the run did"
            got = "attention that was edited, which a trace does not hold"
            raise StrategyError(complaint(what, must, got, "run the strategy itself again, such as 'yopo'"))
        spatial = (ReplaySpatial.of(trace, positions=self.positions),) if _boundaries(trace) else ()
        return Parts(spatial, ReplayTemporal.of(trace) if _evicts(trace) else None)


P = TypeVar("P", bound="_Replaying")


class _Replaying(Strategy, ABC):
    """What the parts of :class:`Replay` share."""

    name: ClassVar[str] = "replay"
    count_is_static: ClassVar[bool] = False
    _trace: Trace = PrivateAttr()

    @classmethod
    def of(cls: type[P], trace: Trace, **parameters: Any) -> P:
        """The part's share of ``trace``."""
        part = cls(**parameters)
        part._trace = trace
        return part

    def begin(self, prompt: PromptInfo) -> None:
        """Refuse a prompt that the trace is not of."""
        _check(self._trace, prompt)


class ReplaySpatial(_Replaying, SpatialSelector):
    """The prefill part of :class:`Replay`."""

    def schedule(self, shape: ModelShape, n_visual: int) -> Schedule:
        """The boundaries at which any sample lost tokens, with the largest count of samples of this size.

        A size that the trace does not have is bounded by all samples; :meth:`begin` refuses such a prompt.
        """
        trace = self._trace
        _check_layers(trace, shape)
        samples = [sample for sample, n in enumerate(trace.n_visual) if n == n_visual] or range(len(trace.n_visual))
        counts = {b: max(len(trace.kept(b, sample)) for sample in samples) for b in _boundaries(trace)}
        return Schedule.of({boundary: min(count, n_visual) for boundary, count in counts.items()})

    def select(self, site: LayerSite, count: Tensor) -> Selection:
        """The recorded sets of layer b."""
        return _selection(site, [self._trace.kept(site.boundary, row) for row in range(len(site.n_visual))])


class ReplayTemporal(_Replaying, TemporalSelector):
    """The decode part of :class:`Replay`."""

    def evicts(self) -> bool:
        """As the recorded part did."""
        return self._trace.evicts

    def count(self, step: int, layer: int, n_prefill: int, shape: ModelShape) -> int:
        """The largest recorded set of this layer and step, among samples that began with ``n_prefill`` entries."""
        trace = self._trace
        samples = [s for s in range(len(trace.n_visual)) if len(trace.kept(layer, s)) == n_prefill]
        return max((len(trace.cached(layer, min(step, trace.steps), s)) for s in samples), default=n_prefill)

    def select(self, site: StepSite, count: Tensor) -> Selection:
        """The recorded sets of this layer and step."""
        step = min(site.step, self._trace.steps)
        return _selection(site, [self._trace.cached(site.layer, step, row) for row in range(len(site.n_visual))])


def _boundaries(trace: Trace) -> tuple[int, ...]:
    """Boundaries at which some sample lost visual tokens."""
    counts = [[*trace.n_visual], *((ids >= 0).sum(dim=1).tolist() for _, ids in trace.prefill)]
    changes = zip(trace.prefill, pairwise(counts), strict=True)
    return tuple(first for (first, _), (before, now) in changes if now != before)


def _evicts(trace: Trace) -> bool:
    """Whether some layer saw less of its cache at a decode step than prefill left."""
    return any(
        len(trace.cached(layer, step, sample)) < len(trace.kept(layer, sample))
        for layer, changes in trace.evictions.items()
        for step in {min(at, trace.steps) for at, _ in changes}
        for sample in range(len(trace.n_visual))
    )


def _check(trace: Trace, prompt: PromptInfo) -> None:
    """Raise StrategyError unless ``trace`` was taken of a prompt and a model of these sizes, which answered it."""
    _check_layers(trace, prompt.shape)
    if trace.exited:
        what, must = "the trace under strategy 'replay'", "be of a prompt that the model answered"
        got = f"rows {list(trace.exited)} answered by a guide"
        raise StrategyError(complaint(what, must, got, "record it without 'exit_threshold'"))
    if tuple(trace.n_visual) != prompt.n_visual:
        what, must = "the prompt under strategy 'replay'", f"have {tuple(trace.n_visual)} visual tokens, as the trace"
        hint = "replay a trace on the prompt, rows and order that it was taken of"
        raise StrategyError(complaint(what, must, prompt.n_visual, hint))


def _check_layers(trace: Trace, shape: ModelShape) -> None:
    """Raise StrategyError unless ``trace`` was taken of a model with as many layers."""
    if trace.n_layers != shape.n_layers:
        what, must = "the model under strategy 'replay'", f"have {trace.n_layers} decoder layers, as the trace"
        raise StrategyError(complaint(what, must, shape.n_layers, "replay a trace on the model that it was taken of"))


def _selection(site: LayerSite | StepSite, kept: list[Tensor]) -> Selection:
    """The current tokens whose raster numbers are in ``kept``, row by row."""
    masks = [torch.isin(ids, keep.to(site.device)) for ids, keep in zip(site.ids, kept, strict=True)]
    mask, counts = torch.stack(masks) & site.valid, tuple(len(keep) for keep in kept)
    if mask.sum(dim=1).tolist() != list(counts):
        what, must = "the trace of strategy 'replay'", f"keep tokens that are still there, {counts} of them"
        raise StrategyError(
            complaint(what, must, mask.sum(dim=1).tolist(), "let no other strategy drop tokens before it")
        )
    return Selection.from_mask(mask, counts)
