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
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface

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


_OBSERVERS: WeakKeyDictionary[nn.Module, Observer] = WeakKeyDictionary()
_SWITCHED: dict[int, tuple[Any, Any, int]] = {}
"""By ``id``: config whose implementation is switched, its own setting, and how many passes want it switched."""
_LOCK = threading.Lock()


def observe(module: nn.Module, observer: Observer) -> None:
    """Let ``observer`` see the calls of ``module``."""
    _OBSERVERS[module] = observer


def ignore(module: nn.Module) -> None:
    """Stop observing ``module``."""
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
    before = {module: _OBSERVERS.get(module) for module in observers}
    _OBSERVERS.update(observers)
    switch_off = switch_on(config)
    try:
        yield
    finally:
        switch_off()
        for module, observer in before.items():
            if observer is None:
                ignore(module)
            else:
                observe(module, observer)


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
        observer = _OBSERVERS.get(module)
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


def switch_on(config: Any) -> Callable[[], None]:
    """Let the modules that read ``config`` call the wrapper, sub-configs left alone; returns what puts it back.

    Models that were built from one config object share it. The first to switch it on and the last to put it back
    change it, so that two of them may run in two threads; what is put back is exactly what was there.
    """
    name = wrapped_name(implementation_of(config))
    with _LOCK:
        _, before, users = _SWITCHED.get(id(config), (config, config._attn_implementation_internal, 0))
        _SWITCHED[id(config)] = (config, before, users + 1)
        config._attn_implementation_internal = name
    return functools.partial(_switch_off, config)


def _switch_off(config: Any) -> None:
    with _LOCK:
        _, before, users = _SWITCHED.pop(id(config))
        if users > 1:
            _SWITCHED[id(config)] = (config, before, users - 1)
        else:
            config._attn_implementation_internal = before
