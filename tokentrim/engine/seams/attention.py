"""The attention function that wraps whatever implementation the model was set to.

Registered in transformers' AttentionInterface *and* AttentionMaskInterface under ``tokentrim_<implementation>``:
a name without a mask function would get no mask at all. The wrapper looks up an observer for the calling attention
module; without one it is the wrapped implementation.
"""

from __future__ import annotations

import functools
import sys
import threading
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary, ref

from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface

from tokentrim.engine.seams.undo import Undo
from tokentrim.errors import UnsupportedError, complaint

Attended = tuple[Tensor, Tensor | None]
"""Output [B, T, H, head_dim], and the weights where the implementation gives them."""
Kernel = Callable[..., Attended]

_PREFIX = "tokentrim_"
_FUNCTIONS = AttentionInterface()
_MASKS = AttentionMaskInterface()


@dataclass(frozen=True)
class AttentionCall:
    """One call of a module's attention, as the model makes it.

    Attributes:
        kernel: the implementation that the model was set to.
        module: whose attention it is.
        query: [B, H, T, head_dim], after RoPE.
        key: [B, H_kv, C, head_dim], likewise.
        value: [B, H_kv, C, head_dim].
        mask: as the implementation takes it.
        options: keyword arguments that implementations know by name.
    """

    kernel: Kernel
    module: nn.Module
    query: Tensor
    key: Tensor
    value: Tensor
    mask: Any
    options: dict[str, Any]

    @property
    def scaling(self) -> float:
        """Factor of the products of queries and keys."""
        return float(self.options.get("scaling") or self.query.shape[-1] ** -0.5)

    def run(self) -> Attended:
        """Compute it."""
        return self.kernel(self.module, self.query, self.key, self.value, self.mask, **self.options)


Observer = Callable[[AttentionCall], Attended]
"""Computes the calls of one module while its wrapper is switched on, looking at or replacing their arguments."""


@dataclass
class _Switched:
    """A config whose implementation is switched.

    Attributes:
        config: what modules read.
        before: its own setting.
        users: who wants it switched; models that were built from one config object share it.
    """

    config: Any
    before: Any
    users: list[object] = field(default_factory=list[object])


_OBSERVERS: WeakKeyDictionary[nn.Module, tuple[ref[Observer], ...]] = WeakKeyDictionary()
"""Who sees the calls of a module: the last one does. They live as long as what ends their looking."""
_SWITCHED: dict[int, _Switched] = {}
"""By ``id`` of the config."""
_LOCK = threading.RLock()


def observe(module: nn.Module, observer: Observer, undo: Undo) -> None:
    """Let ``observer`` see the calls of ``module`` until ``undo`` runs; whoever looked before then looks again."""
    undo.note(functools.partial(_ignore, module, observer))
    _OBSERVERS[module] = (*_OBSERVERS.get(module, ()), ref(observer))


def _ignore(module: nn.Module, observer: Observer) -> None:
    others = tuple(one for one in _OBSERVERS.get(module, ()) if one() not in (observer, None))
    if others:
        _OBSERVERS[module] = others
    else:
        _OBSERVERS.pop(module, None)


def is_observed(module: nn.Module) -> bool:
    """Whether somebody sees the calls of ``module``."""
    return module in _OBSERVERS


@contextmanager
def observing(observers: Mapping[nn.Module, Observer], config: Any) -> Generator[None]:
    """Let each module's calls be seen by its observer inside the block; whoever looked before looks again afterwards.

    Args:
        observers: by attention module.
        config: that the modules read their implementation from.
    """
    undo = Undo()
    try:
        for module, observer in observers.items():
            observe(module, observer, undo)
        switch_on(config, undo)
        yield
    finally:
        undo.run()


def wrapped_name(implementation: str) -> str:
    """Name of the wrapper of ``implementation``, registered on first use."""
    name = _PREFIX + implementation
    if name not in _FUNCTIONS:
        mask = _MASKS.get(implementation, None)
        if mask is None:
            raise UnsupportedError(
                complaint(
                    "the model's attention implementation",
                    "have a registered mask function",
                    implementation,
                    "load the model with attn_implementation='sdpa', 'eager', 'flex_attention' or a flash one",
                )
            )
        AttentionInterface.register(name, _make_wrapper(implementation))
        AttentionMaskInterface.register(name, mask)
    return name


def _make_wrapper(implementation: str) -> Kernel:
    def wrapper(
        module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, **options: Any
    ) -> Attended:
        call = AttentionCall(_kernel(implementation, module), module, query, key, value, attention_mask, options)
        observers = _OBSERVERS.get(module)
        observer = observers[-1]() if observers else None
        return call.run() if observer is None else observer(call)

    return wrapper


def _kernel(implementation: str, module: nn.Module) -> Kernel:
    if implementation in _FUNCTIONS:
        return _FUNCTIONS[implementation]
    # Eager attention is not registered: each modeling file brings its own, as the default of its look-up.
    return sys.modules[type(module).__module__].eager_attention_forward


def implementation_of(config: Any) -> str:
    """The implementation that ``config`` is set to, wrapped or not (``eager`` when unset)."""
    return (config._attn_implementation or "eager").removeprefix(_PREFIX)


def switch_on(config: Any, undo: Undo) -> None:
    """Let the modules that read ``config`` call the wrapper until ``undo`` runs, sub-configs left alone.

    The first to switch it on and the last to put it back change it: two models may share it in two threads. What
    is put back is exactly what was there.
    """
    name, user = wrapped_name(implementation_of(config)), object()
    undo.note(functools.partial(_switch_off, config, user))
    with _LOCK:
        switched = _SWITCHED.setdefault(id(config), _Switched(config, config._attn_implementation_internal))
        switched.users.append(user)
        config._attn_implementation_internal = name


def _switch_off(config: Any, user: object) -> None:
    with _LOCK:
        switched = _SWITCHED.get(id(config))
        if switched is None:
            return
        switched.users[:] = [one for one in switched.users if one is not user]
        if not switched.users:
            config._attn_implementation_internal = switched.before
            del _SWITCHED[id(config)]


@contextmanager
def attention_set(config: Any, name: str, undo: Undo) -> Generator[None]:
    """Let the modules that read ``config`` use the registered attention ``name`` inside the block."""
    before, own = config._attn_implementation_internal, undo.part()
    try:
        own.note(lambda: setattr(config, "_attn_implementation_internal", before))
        config._attn_implementation_internal = name
        yield
    finally:
        own.run()
