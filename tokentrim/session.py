"""trim, apply, restore: put a strategy on a model, and take it off again without a trace."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, TypeVar, get_args

from torch import nn

from tokentrim.config.specs import Spec, Structure, resolve, strategy_from, with_parameters
from tokentrim.contracts.adapter import Adapter, Layout
from tokentrim.contracts.extras import GuideRequest
from tokentrim.contracts.sites import ATTENTION_ROWS, Need
from tokentrim.engine import guide as guides
from tokentrim.engine.abilities import exits
from tokentrim.engine.seams.private import unwrapped as unwrapped
from tokentrim.engine.session import Session as Session, session_on
from tokentrim.errors import AdapterError, ConfigError, UnsupportedError, complaint
from tokentrim.plugins.loader import registry
from tokentrim.selftest import proven, trusted

M = TypeVar("M", bound=nn.Module)


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
    """The adapter of a model and where it finds things, proven by a self-test unless the adapter was made for it.

    Raises:
        AdapterError: when no adapter knows the model, or its layout has drifted.
        UnsupportedError: when it fails the self-test.
    """
    adapter = adapter_of(model)
    layout = adapter.locate(model)
    known = trusted(adapter, (*layout.layers, *layout.attentions))
    return adapter, layout if known else proven(model, adapter, layout)


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
    **parameters: Any,
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
            ``engine/compiled.py``). The first step at each set of sizes is slow. Steps that cannot run compiled
            run as usual, and the report says how many and why.
        **parameters: of a strategy that is given by its name: ``trim(model, "fastv", keep_ratio=0.2)``.

    Raises:
        AdapterError: the family is unknown, or its layout has drifted.
        ConfigError, UnknownNameError, StrategyError: the strategy is not one.
        UnsupportedError: the strategy asks for what this model cannot give.
    """
    chosen = with_parameters(strategy, parameters)
    found = located(unwrapped(model)[0])
    return session_with(model, chosen, found, record=record, guide=guide, structure=structure, compile=compile)


def session_with(
    model: nn.Module,
    strategy: Spec,
    found: tuple[Adapter, Layout],
    *,
    record: bool = True,
    guide: nn.Module | None = None,
    structure: Structure | None = None,
    compile: bool = False,
) -> Session:
    """As :func:`trim`, of a model whose adapter and layout are ``found`` already."""
    adapter, layout = found
    chosen = strategy_from(strategy)
    layout = _layout_of(layout, structure or chosen.structure or "keep")
    n_visual = layout.shape.usual_visual
    resolved = resolve(chosen, layout.shape, n_visual)
    request = guides.request_of(resolved)
    asked = None if request is None else _guide(model, layout, request, guide)
    return Session(model, resolved, adapter=adapter, layout=layout, guide=asked, record=record, compile=compile)


def _guide(model: Any, layout: Layout, request: GuideRequest, given: Any) -> guides.Guide:
    """The guide of a strategy that asks for one: the caller's, this very model, or one loaded by name."""
    if given is None:
        given = model if request.model == "self" else guides.load(request, model)
    inner = unwrapped(given)[0]
    if request.exit_threshold is not None:
        exits.require_other(unwrapped(model)[0], inner)
    adapter, found = located(inner)
    own = _layout_of(found, "keep" if layout.structured else "prune")
    if missing := sorted(need.value for need in ATTENTION_ROWS & own.unserved.keys()):
        raise UnsupportedError(complaint("a guide", "give rows of its attention", f"a model without {missing}",
                                         "; ".join({own.unserved[Need(name)] for name in missing})))  # fmt: skip
    return guides.Guide(inner, adapter, own, request)


def apply(
    model: M,
    strategy: Spec,
    *,
    record: bool = True,
    guide: nn.Module | None = None,
    structure: Structure | None = None,
    compile: bool = False,
    **parameters: Any,
) -> M:
    """Like :func:`trim`, until :func:`restore`; returns the model. Its session is ``session_of(model)``."""
    session = trim(model, strategy, record=record, guide=guide, structure=structure, compile=compile, **parameters)
    session.__enter__()
    return model


def session_of(model: nn.Module) -> Session:
    """The session that a model carries.

    Raises:
        UnsupportedError: when it carries none.
    """
    inner = unwrapped(model)[0]
    session = session_on(adapter_of(inner).locate(inner).language_model)
    if session is None:
        raise UnsupportedError(
            complaint("a model", "be trimmed", "an untouched model", "call apply(model, strategy) first")
        )
    return session


def restore(model: M) -> M:
    """Undo :func:`apply`; returns the model, exactly as it was.

    Raises:
        UnsupportedError: when the model carries no strategy.
    """
    session_of(model).__exit__(None, None, None)
    return model
