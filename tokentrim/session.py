"""trim, apply, restore: put a strategy on a model, and take it off again without a trace."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from types import TracebackType
from typing import Any, TypeVar, get_args
from weakref import WeakKeyDictionary

from torch import Tensor, nn

from tokentrim import exiting, refusals
from tokentrim import guide as guides
from tokentrim.adapter import Adapter, Layout
from tokentrim.config import Spec, Structure, resolve, strategy_from
from tokentrim.engine import Engine
from tokentrim.errors import AdapterError, ConfigError, DataError, UnsupportedError, complaint
from tokentrim.extras import GuideRequest
from tokentrim.plugins import registry
from tokentrim.prompt import Prompt
from tokentrim.report import Report, Tally, make_report
from tokentrim.sites import Grid
from tokentrim.strategy import Strategy
from tokentrim.trace import Trace

M = TypeVar("M", bound=nn.Module)

_TRIMMED: WeakKeyDictionary[nn.Module, Session] = WeakKeyDictionary()
"""Language models that carry a session, with it."""


class Session:
    """A strategy on a model, from ``with trim(...)`` to the end of the block (or ``apply`` to ``restore``).

    Attributes:
        model: the caller's model.
        strategy: the strategy object in force, with its budget solved.
        adapter: the model family's adapter.
        layout: where the adapter found things.
    """

    def __init__(
        self,
        model: nn.Module,
        strategy: Spec,
        *,
        record: bool = True,
        guide: nn.Module | None = None,
        structure: Structure | None = None,
        compile: bool = False,
        found: tuple[Adapter, Layout] | None = None,
    ) -> None:
        self.model = model
        self._host, compiled = unwrapped(model)
        self.adapter, layout = found or located(self._host)
        chosen = strategy_from(strategy)
        self.layout: Layout = _layout_of(layout, structure or chosen.structure or "keep")
        shape = self.layout.shape
        self.strategy: Strategy = resolve(chosen, shape, shape.usual_visual)
        request = guides.request_of(self.strategy)
        asked = None if request is None else self._guide(request, guide)
        self._engine = Engine(self.adapter, self.layout, self.strategy, record=record, guide=asked, compiled=compile)
        for part in self.strategy.spatial_parts:
            part.meet(self.layout.entry, shape)
        if compiled and self._engine.untouched is None:
            refusals.refuse_compiled(type(model).__name__)
        self._engine.on_prompt = self._begin_prompt
        self._tally = Tally(shape)
        self._latest: Prompt | None = None
        self._lengths: Sequence[int] | None = None

    def _guide(self, request: GuideRequest, given: Any) -> guides.Guide:
        """The guide of a strategy that asks for one: the caller's, this very model, or one loaded by name."""
        model = given
        if model is None:
            model = self.model if request.model == "self" else guides.load(request, self.model)
        inner = unwrapped(model)[0]
        if request.exit_threshold is not None:
            exiting.require_other(self._host, inner)
        layout = _layout_of(adapter_of(inner).locate(inner), "keep" if self.layout.structured else "prune")
        return guides.Guide(inner, layout, request)

    # ------------------------------------------------------------------ on and off

    def __enter__(self) -> Session:
        """Install the engine.

        Raises:
            UnsupportedError: when the model is trimmed already.
        """
        owner = self.layout.language_model
        if owner in _TRIMMED:
            raise UnsupportedError(
                complaint(
                    "a model",
                    "carry one strategy at a time",
                    _TRIMMED[owner].strategy.label(),
                    "leave the context or call restore(model) first; combine strategies by composing them",
                )
            )
        self._engine.install(self._host)
        _TRIMMED[owner] = self
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Take the engine out; the model is exactly as before.

        Raises:
            StrategyError: when a forward outside ``generate`` was pruned by scores with NaN among them.
        """
        _TRIMMED.pop(self.layout.language_model, None)
        self._engine.remove()
        if error is None:
            self._engine.doubts.settle()

    # ------------------------------------------------------------------ what the caller may say and ask

    def annotate(self, *, evidence: Any = None, new_tokens: Sequence[int] | None = None) -> None:
        """Tell the session what only the caller knows.

        Args:
            evidence: for the *next* prompt: relevance of every visual token, one row of N numbers per sample, for
                strategies that read it (``oracle``). Or a function that makes such rows of the prompt's
                :class:`~tokentrim.sites.Grid`.
            new_tokens: for the *latest* prompt: tokens that each row's answer really has. In a batch, rows that end
                early are decoded on with the others; with this their cache figures count their own steps only.

        Raises:
            DataError: when ``new_tokens`` does not have one entry per row of the latest prompt.
        """
        if evidence is not None:
            self._engine.evidence = evidence
        if new_tokens is not None:
            rows = self._latest.start.rows if self._latest else 0
            if len(new_tokens) != rows:
                raise DataError(
                    complaint(
                        "new_tokens",
                        f"have one entry per row of the latest prompt, {rows}",
                        len(new_tokens),
                        "call it after generate, before the next prompt",
                    )
                )
            self._lengths = list(new_tokens)

    @property
    def trace(self) -> Trace:
        """The record of the latest prompt.

        Raises:
            DataError: when no prompt has run, or recording is off.
        """
        if self._latest is None or self._latest.trace is None:
            raise DataError(
                complaint(
                    "session.trace",
                    "follow a prompt that was recorded",
                    None,
                    "call generate() first, and do not pass record=False",
                )
            )
        return self._latest.trace

    @property
    def grid(self) -> Grid:
        """Image, frame, plane, row and column of every visual token of the latest prompt.

        Raises:
            DataError: when no prompt with pictures has run.
            UnsupportedError: when its pictures were encoded outside the context, and differ in size.
        """
        if self._latest is None or not any(self._latest.start.n_visual):
            raise DataError(
                complaint("session.grid", "follow a prompt with pictures", None, "call generate() with an image first")
            )
        return self._engine.grid_of(self._latest)

    @property
    def visual(self) -> Tensor:
        """bool [B, T]: which columns of the latest prompt were visual tokens, before anything was pruned.

        Raises:
            DataError: when no prompt has run.
        """
        if self._latest is None:
            raise DataError(complaint("session.visual", "follow a prompt", None, "call generate() first"))
        return self._latest.start.visual_mask()

    def report(self) -> Report:
        """What was kept and spent so far, over all prompts of this session.

        Raises:
            DataError: when no prompt has run: a report of nothing would hide that nothing was pruned.
            StrategyError: when scores of a prompt held NaN.
        """
        self._engine.doubts.settle()
        tally = self._tally.copy()
        if self._latest is not None:
            tally.add(self._latest, self._lengths)
        if not tally.prompts:
            raise DataError(
                complaint(
                    "session.report()",
                    "follow at least one prompt",
                    0,
                    "call generate() on this very model inside the context",
                )
            )
        seconds = {name: self._engine.clock.seconds(name) for name in ("selection", "prefill", "vision", "decode")}
        notes = [] if self._engine.compiled is None else self._engine.compiled.notes()
        return make_report(self.strategy.label(), tally, seconds, notes)

    def _begin_prompt(self, prompt: Prompt) -> None:
        if self._latest is not None:
            self._tally.add(self._latest, self._lengths)
        self._latest, self._lengths = prompt, None


def unwrapped(model: nn.Module) -> tuple[nn.Module, bool]:
    """The model inside the wrappers that a user may pass instead, and whether one of them compiles it.

    Known are PEFT's (every forward ends in their inner model), distributed data parallel, and ``torch.compile``.
    """
    compiled, inner = False, model
    while True:
        if "_orig_mod" in dict(inner.named_children()):
            inner, compiled = getattr(inner, "_orig_mod"), True  # noqa: B009
        elif hasattr(inner, "peft_config") and hasattr(inner, "get_base_model"):
            inner = getattr(inner, "get_base_model")()  # noqa: B009
        elif isinstance(inner, nn.parallel.DistributedDataParallel):
            inner = inner.module
        else:
            return inner, compiled


def _layout_of(layout: Layout, structure: Structure) -> Layout:
    """The layout, with line ends as visual tokens where they are to be pruned like them."""
    if structure not in get_args(Structure):
        raise ConfigError(complaint("structure", "be keep or prune", structure, "say what becomes of line ends"))
    if structure == "keep" or not layout.structured:
        return layout
    shape = layout.shape
    vision = None if shape.vision is None else shape.vision.with_structure_visual()
    return replace(layout, structured=False, shape=replace(shape, vision=vision))


def located(model: nn.Module) -> tuple[Adapter, Layout]:
    """The adapter of a model and where it finds things, proven by a self-test where the adapter needs that.

    Raises:
        AdapterError: when no adapter knows the model, or its layout has drifted.
        UnsupportedError: when it fails the self-test.
    """
    adapter = adapter_of(model)
    layout = adapter.locate(model)
    if adapter.needs_proof:
        from tokentrim.selftest import proven  # it runs sessions itself

        layout = proven(model, adapter, layout)
    return adapter, layout


def adapter_of(model: nn.Module) -> Adapter:
    """The registered adapter of a model, by ``config.model_type``; else the first fallback that recognises its layout.

    Raises:
        AdapterError: when no adapter knows the model; lists the known families, and what else was missing.
    """
    adapters = registry("adapter")
    model_type = getattr(getattr(model, "config", None), "model_type", None)
    known: list[str] = []
    for entry in adapters:
        types = tuple(entry.tags.get("model_types", ())) or adapters.get(entry.name).model_types
        if model_type in types:
            return adapters.get(entry.name)()
        known += types
    reasons: list[str] = []
    for entry in adapters:
        if entry.tags.get("fallback") and hasattr(model, "config"):
            adapter: Adapter = adapters.get(entry.name)()
            try:
                adapter.locate(model)
            except AdapterError as reason:
                reasons.append(f"adapter {entry.name}: {reason}")
            else:
                return adapter
    raise AdapterError(
        complaint(
            "a model to trim",
            f"belong to a known family ({', '.join(sorted(known))})",
            model_type or type(model).__name__,
            " ".join([*reasons, "Write an adapter, or use a model of these families."]),
        )
    )


def trim(
    model: nn.Module,
    strategy: Spec,
    *,
    record: bool = True,
    guide: nn.Module | None = None,
    structure: Structure | None = None,
    compile: bool = False,
) -> Session:
    """A context manager in which ``model`` runs pruned, however ``generate`` is called.

    Args:
        model: a model that a registered adapter recognises, from any source.
        strategy: a registered name, a dict, YAML text, a path to YAML, a TrimConfig, or a strategy object.
        record: keep a trace of what was kept where (cheap).
        guide: for strategies that ask a second model first (``sgl``): that model, instead of the one they name.
        structure: what becomes of placeholders that are structure (the line ends of tiled images): ``keep`` all of
            them, which are then neither text nor visual tokens, or ``prune`` them as visual tokens without a place
            in any grid. None: as the configuration says, else ``keep``.
        compile: run decode steps of one token under ``torch.compile``, with cache buffers of bucketed size (see
            :mod:`tokentrim.compiled`). The first step at each set of sizes is slow. Steps that cannot run compiled
            run as usual, and the report says how many and why.

    Raises:
        AdapterError: the family is unknown, or its layout has drifted.
        ConfigError, UnknownNameError, StrategyError: the strategy is not one.
        UnsupportedError: the strategy asks for what this model cannot give.
    """
    return Session(model, strategy, record=record, guide=guide, structure=structure, compile=compile)


def apply(
    model: M,
    strategy: Spec,
    *,
    record: bool = True,
    guide: nn.Module | None = None,
    structure: Structure | None = None,
    compile: bool = False,
) -> M:
    """Like :func:`trim`, until :func:`restore`; returns the model. Its session is ``session_of(model)``."""
    trim(model, strategy, record=record, guide=guide, structure=structure, compile=compile).__enter__()
    return model


def session_of(model: nn.Module) -> Session:
    """The session that a model carries.

    Raises:
        UnsupportedError: when it carries none.
    """
    inner = unwrapped(model)[0]
    owner = adapter_of(inner).locate(inner).language_model
    if owner not in _TRIMMED:
        raise UnsupportedError(
            complaint("a model", "be trimmed", "an untouched model", "call apply(model, strategy) first")
        )
    return _TRIMMED[owner]


def restore(model: M) -> M:
    """Undo :func:`apply`; returns the model, exactly as it was.

    Raises:
        UnsupportedError: when the model carries no strategy.
    """
    session_of(model).__exit__(None, None, None)
    return model
