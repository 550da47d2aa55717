"""What ``generate`` is asked for, looked at before any of it runs.

A forward cannot tell a chunk of a prompt from a later turn, nor a guessed token from a prompt's own. The call can; so
while a model is trimmed, its ``generate`` is wrapped, on the instance, and put back with everything else.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from tokentrim import cache
from tokentrim.adapter import bind
from tokentrim.errors import UnsupportedError, complaint
from tokentrim.exiting import Exited, Exits

if TYPE_CHECKING:
    from tokentrim.engine import Engine

_PICTURES = ("pixel_values", "pixel_values_videos", "mm_encoder_outputs")
_GUESSERS = ("assistant_early_exit", "use_mtp")
_MAKER = "_get_candidate_generator"


@dataclass(frozen=True)
class Call:
    """A call of ``generate`` that is running.

    Attributes:
        columns: of the prompt (with a continued cache, of all that was said so far).
        chunked: whether the prompt is fed in several forwards.
        assisted: whether tokens are guessed ahead.
        new_tokens: the most that will be generated; None where no limit is given.
        exits: where a guide may answer instead.
    """

    columns: int
    chunked: bool
    assisted: bool
    new_tokens: int | None = None
    exits: Exits | None = None


class Options:
    """The arguments of a call of ``generate``, however they are given."""

    def __init__(self, host: Any, arguments: Mapping[str, Any]) -> None:
        self.arguments = arguments
        self._sources = [arguments.get("generation_config"), getattr(host, "generation_config", None)]

    def get(self, name: str) -> Any:
        """An argument; or else what the generation config says."""
        if self.arguments.get(name) is not None:
            return self.arguments[name]
        found = (getattr(source, name, None) for source in self._sources if source is not None)
        return next((value for value in found if value is not None), None)

    @property
    def call(self) -> Call | None:
        """What the engine has to know; None where there are no ids to tell it from."""
        ids = self.arguments.get("input_ids")
        ids = self.arguments.get("inputs") if ids is None else ids
        if ids is None:
            return None
        chunk = self.get("prefill_chunk_size")
        begun = _length(self.arguments.get("past_key_values"))
        columns = int(ids.shape[1])
        limit, longest = self.get("max_new_tokens"), self.get("max_length")
        if limit is None and longest is not None:
            limit = max(0, longest - columns)
        return Call(columns, chunk is not None and chunk < columns - begun, self.assisted, limit)

    @property
    def assisted(self) -> bool:
        """Whether tokens are guessed ahead, by whatever means."""
        names = ("assistant_model", "prompt_lookup_num_tokens", *_GUESSERS)
        return any(self.get(name) for name in names) or self.get("speculation_type") is not None


def watch(host: nn.Module, engine: Engine) -> Callable[[], None]:
    """Wrap ``host.generate`` on the instance, where there is one; returns what puts it back."""
    generate: Any = getattr(host, "generate", None)
    if generate is None:
        return lambda: None

    @functools.wraps(generate)
    def watched(*args: Any, **kwargs: Any) -> Any:
        options = Options(host, bind(generate, args, kwargs))
        pruning, assisted = engine.untouched is None, options.assisted
        if pruning:
            _refuse(engine, options)
        call, exits, threshold = options.call, None, engine.guide and engine.guide.request.exit_threshold
        if threshold is not None:
            exits = Exits.of(host, options, threshold)
            call = replace(call, exits=exits) if call is not None else None
        outer, engine.call = engine.call, call
        try:
            with _no_guess_within_the_prompt(host) if pruning and assisted else nullcontext():
                output = generate(*args, **kwargs)
        except Exited:
            output = None
        finally:
            engine.call = outer
        engine.doubts.settle()
        return output if exits is None else exits.joined(output)

    watched.tokentrim_engine = engine  # type: ignore[attr-defined]
    return replaced(host, "generate", watched)


def watch_labels(host: nn.Module, engine: Engine) -> Callable[[], None]:
    """Show the engine the labels of a forward of ``host`` while it runs; returns what puts its ``forward`` back.

    Not a hook: PEFT's wrappers call ``forward`` past all hooks.
    """
    forward: Any = host.forward
    if "labels" not in inspect.signature(forward).parameters:
        return lambda: None

    @functools.wraps(forward)
    def watched(*args: Any, **kwargs: Any) -> Any:
        engine.labels = bind(forward, args, kwargs).get("labels")
        try:
            return forward(*args, **kwargs)
        finally:
            engine.labels = None

    return replaced(host, "forward", watched)


def replaced(host: Any, name: str, function: Callable[..., Any]) -> Callable[[], None]:
    """Put ``function`` in place of a method on the instance; returns what puts it back."""
    before = host.__dict__.get(name)
    host.__dict__[name] = function

    def undo() -> None:
        if before is None:
            host.__dict__.pop(name, None)
        else:
            host.__dict__[name] = before

    return undo


@contextmanager
def _no_guess_within_the_prompt(host: Any) -> Generator[None]:
    """Let the first forward of assisted decoding take the prompt alone: its last token then is the prompt's.

    The first guess is made, so that an assistant has read the prompt, and thrown away.
    """
    make = getattr(host, _MAKER)

    def made(*args: Any, **kwargs: Any) -> Any:
        generator = make(*args, **kwargs)
        ask = generator.get_candidates

        def first(input_ids: Any, *more: Any, **options: Any) -> tuple[Any, None]:
            del generator.get_candidates
            ask(input_ids, *more, **options)
            return input_ids, None

        generator.get_candidates = first
        return generator

    undo = replaced(host, _MAKER, made)
    try:
        yield
    finally:
        undo()


def _refuse(engine: Engine, options: Options) -> None:
    """Raise UnsupportedError for what would come out wrong under a strategy that prunes."""
    kind, past, call = options.get("cache_implementation"), options.arguments.get("past_key_values"), options.call
    if kind not in (None, "dynamic", "dynamic_full"):
        cache.refuse(f"cache_implementation={kind!r}")
    if past is not None and not _length(past):
        cache.require_plain(past)
    if _length(past) and pictured(options.arguments):
        refuse_new_pictures()
    if call is not None and call.chunked:
        raise UnsupportedError(
            complaint(
                "prefill_chunk_size of a prompt that is pruned",
                f"be at least its {call.columns} tokens, because tokens are chosen with the whole prompt in view",
                options.get("prefill_chunk_size"),
                "drop prefill_chunk_size; pruning itself lowers the memory of later layers",
            )
        )
    if options.get("use_cache") is False and engine.temporal is not None:
        refuse_without_cache(engine)
    if options.assisted:
        _refuse_assistant(engine, options)


def _refuse_assistant(engine: Engine, options: Options) -> None:
    if engine.temporal is not None:
        raise UnsupportedError(
            complaint(
                "assisted decoding and prompt lookup",
                "go without a temporal strategy: a guess that is taken back leaves evicted tokens gone",
                engine.temporal.label(),
                "use the spatial part alone, or decode without an assistant",
            )
        )
    helper = options.get("assistant_model")
    other = getattr(getattr(helper, "generate", None), "tokentrim_engine", None)
    own = [name for name in _GUESSERS if options.get(name)]
    own += ["speculation_type"] if options.get("speculation_type") is not None else []
    if own or (other is not None and other.untouched is None):
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
    known: set[int] = set() if ends is None else {ends} if isinstance(ends, int) else set(ends)
    rows: list[list[int]] = new.tolist()
    return [next((i + 1 for i, token in enumerate(row) if token in known), len(row)) for row in rows]


def pictured(arguments: Mapping[str, Any]) -> bool:
    """Whether a call brings pictures, as pixels or encoded (by modality, perhaps none)."""
    *pixels, encoded = (arguments.get(name) for name in _PICTURES)
    return any(value is not None for value in [*pixels, *(encoded or {}).values()])


def refuse_new_pictures() -> None:
    """Raise for a cache that is continued with pictures."""
    raise UnsupportedError(
        complaint(
            "a continued prompt",
            "bring text only",
            "new images (or a prompt fed in chunks)",
            "start a new prompt that holds all images and all that was said, without a cache",
        )
    )


def refuse_without_cache(engine: Engine) -> None:
    """Raise for a temporal strategy that has nothing to act on."""
    label = engine.temporal.label() if engine.temporal is not None else ""
    raise UnsupportedError(
        complaint(
            f"temporal strategy {label!r}",
            "have a KV cache to act on",
            "use_cache=False",
            "drop use_cache=False, or the temporal part",
        )
    )


def _length(past: Any) -> int:
    return int(past.get_seq_length()) if past is not None else 0
