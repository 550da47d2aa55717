"""What ``generate`` is asked for, looked at before any of it runs.

A forward cannot tell a chunk of a prompt from a later turn, nor a guessed token from a prompt's own. The call can; so
while a model is trimmed, its ``generate`` is wrapped, on the instance, and put back with everything else.
"""

from __future__ import annotations

import functools
import inspect
import threading
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor, nn

from tokentrim.engine import refusals
from tokentrim.engine.abilities.exits import lengths_to_end
from tokentrim.engine.context import Context
from tokentrim.engine.seams.calls import (
    GUESSERS,
    GenerateOptions,
    bind,
    cached_length,
    no_guess_within_the_prompt,
    pictured,
)
from tokentrim.engine.seams.private import unwrapped
from tokentrim.engine.seams.undo import Undo, patch
from tokentrim.engine.tokens import cache
from tokentrim.errors import UnsupportedError, complaint

_PRUNED: WeakSet[nn.Module] = WeakSet()
"""Models whose answers are pruned."""


@dataclass(frozen=True)
class Call:
    """A call of ``generate`` that is running.

    Attributes:
        columns: of the prompt (with a continued cache, of all that was said so far).
        chunked: whether the prompt is fed in several forwards.
        new_tokens: the most that will be generated; None where no limit is given.
    """

    columns: int
    chunked: bool
    new_tokens: int | None = None

    @classmethod
    def of(cls, options: GenerateOptions) -> Call | None:
        """What the engine has to know of a call; None where there are no ids to tell it from."""
        if options.ids is None:
            return None
        chunk = options.get("prefill_chunk_size")
        begun = cached_length(options.arguments.get("past_key_values"))
        columns = int(options.ids.shape[1])
        limit, longest = options.get("max_new_tokens"), options.get("max_length")
        if limit is None and longest is not None:
            limit = max(0, longest - columns)
        return cls(columns, chunk is not None and chunk < columns - begun, limit)


class Generating(threading.local):
    """What each thread runs on a host: the call of ``generate``, and the forward with labels.

    Attributes:
        call: the call that is running, if any.
        labels: int64 [B, T] that the running forward was given, if any.
    """

    def __init__(self, context: Context) -> None:
        self.call: Call | None = None
        self.labels: Tensor | None = None
        self._context = context

    def watch(self, host: nn.Module, undo: Undo) -> None:
        """Wrap ``generate`` and ``forward`` of ``host`` on the instance, until ``undo`` runs.

        The forward's labels are not seen by a hook, because PEFT's wrappers call ``forward`` past all hooks.
        """
        if hasattr(host, "generate"):
            patch(host, "generate", functools.partial(self._watched, host, undo), undo)
        if "labels" in inspect.signature(host.forward).parameters:
            patch(host, "forward", self._with_labels, undo)
        if self._context.acts:
            undo.note(functools.partial(_PRUNED.discard, host))
            _PRUNED.add(host)

    def _watched(self, host: nn.Module, undo: Undo, generate: Callable[..., Any]) -> Callable[..., Any]:
        context = self._context

        def watched(*args: Any, **kwargs: Any) -> Any:
            options = GenerateOptions(host, bind(generate, args, kwargs))
            call = Call.of(options)
            if context.acts:
                _refuse(context, options, call)

            def run() -> Any:
                with no_guess_within_the_prompt(host, undo) if context.acts and options.assisted else nullcontext():
                    return generate(*args, **kwargs)

            for ability in context.abilities:
                run = functools.partial(ability.around_call, host, options, run)
            outer, self.call = self.call, call
            try:
                output = run()
            except Exception:
                context.doubts.settle()  # a cause says more than what came of it
                raise
            finally:
                self.call = outer
                self._ended()
            context.doubts.settle()
            return output

        return watched

    def _with_labels(self, forward: Callable[..., Any]) -> Callable[..., Any]:
        def watched(*args: Any, **kwargs: Any) -> Any:
            if torch.compiler.is_compiling():
                return forward(*args, **kwargs)
            try:
                self.labels = bind(forward, args, kwargs).get("labels")
                return forward(*args, **kwargs)
            finally:
                self.labels = None
                self._ended()

        return watched

    def _ended(self) -> None:
        """End a forward that Ctrl-C has cut short: torch then calls no hook."""
        if self.call is None and not self._context.vision.suspended:
            self._context.turns.give_back()


_DYNAMIC = ("dynamic", "dynamic_full", "hybrid")
"""Names under which ``generate`` makes a plain cache; the last, which published checkpoints have, it leaves out."""


def _refuse(context: Context, options: GenerateOptions, call: Call | None) -> None:
    """Raise UnsupportedError for what would come out wrong under a strategy that prunes."""
    kind, past = options.get("cache_implementation"), options.arguments.get("past_key_values")
    if kind not in (None, *_DYNAMIC):
        cache.refuse(f"cache_implementation={kind!r}")
    if past is not None and not cached_length(past):
        cache.require_plain(past)
    if cached_length(past) and pictured(options.arguments):
        refusals.refuse_new_pictures()
    if call is not None and call.chunked:
        raise UnsupportedError(
            complaint(
                "prefill_chunk_size of a prompt that is pruned",
                f"be at least its {call.columns} tokens, because tokens are chosen with the whole prompt in view",
                options.get("prefill_chunk_size"),
                "drop prefill_chunk_size; pruning itself lowers the memory of later layers",
            )
        )
    if options.get("use_cache") is False and context.temporal is not None:
        refusals.refuse_without_cache(context.temporal)
    if options.assisted:
        _refuse_assistant(context, options)


def _refuse_assistant(context: Context, options: GenerateOptions) -> None:
    if context.temporal is not None:
        raise UnsupportedError(
            complaint(
                "assisted decoding and prompt lookup",
                "go without a temporal strategy: a guess that is taken back leaves evicted tokens gone",
                context.temporal.label(),
                "use the spatial part alone, or decode without an assistant",
            )
        )
    helper = options.get("assistant_model")
    trimmed = isinstance(helper, nn.Module) and unwrapped(helper)[0] in _PRUNED
    own = [name for name in GUESSERS if options.get(name)]
    own += ["speculation_type"] if options.get("speculation_type") is not None else []
    if own or trimmed:
        raise UnsupportedError(
            complaint(
                "the assistant of a trimmed model",
                "be another model, not trimmed itself, or prompt lookup",
                own[0] if own else "a trimmed model",
                "pass assistant_model=... outside its own context, or prompt_lookup_num_tokens=...",
            )
        )


def answer_lengths(model: Any, new: Tensor) -> list[int]:
    """New tokens of every row [B, n] up to its end token; what follows is padding that generate adds to ended rows."""
    ends: Any = model.generation_config.eos_token_id
    return lengths_to_end(new, frozenset() if ends is None else {ends} if isinstance(ends, int) else set(ends))
