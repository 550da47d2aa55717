"""Arguments of calls of a model, by name: of its forwards, and of ``generate``, however they are given."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from tokentrim.engine.seams.private import GUESS_MAKER
from tokentrim.engine.seams.undo import Undo, patch

_PICTURES = ("pixel_values", "pixel_values_videos", "mm_encoder_outputs")
GUESSERS = ("assistant_early_exit", "use_mtp")
"""Arguments of ``generate`` by which a model guesses ahead for itself."""


def bind(function: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of a call by name; ``**kwargs`` of the function are flattened in.

    Some model classes pass ``input_ids`` and friends to their inner model by position, others by keyword.
    """
    if not args:
        return dict(kwargs)
    names = [
        name
        for name, parameter in inspect.signature(function).parameters.items()
        if parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD)
    ]
    return {**dict(zip(names, args, strict=False)), **kwargs}


def pictured(arguments: Mapping[str, Any]) -> bool:
    """Whether a call brings pictures, as pixels or encoded (by modality, perhaps none)."""
    *pixels, encoded = (arguments.get(name) for name in _PICTURES)
    return any(value is not None for value in [*pixels, *(encoded or {}).values()])


def cached_length(past: Any) -> int:
    """Tokens that a cache has seen; 0 for None."""
    return int(past.get_seq_length()) if past is not None else 0


class GenerateOptions:
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
    def ids(self) -> Tensor | None:
        """int64 [B, T], the prompt; None where the call brings none."""
        ids = self.arguments.get("input_ids")
        return self.arguments.get("inputs") if ids is None else ids

    @property
    def assisted(self) -> bool:
        """Whether tokens are guessed ahead, by whatever means."""
        names = ("assistant_model", "prompt_lookup_num_tokens", *GUESSERS)
        return any(self.get(name) for name in names) or self.get("speculation_type") is not None


@contextmanager
def no_guess_within_the_prompt(host: Any, undo: Undo) -> Generator[None]:
    """Let the first forward of assisted decoding take the prompt alone: its last token then is the prompt's.

    The first guess is made, so that an assistant has read the prompt, and thrown away.
    """

    def made_by(make: Callable[..., Any]) -> Callable[..., Any]:
        def made(*args: Any, **kwargs: Any) -> Any:
            generator = make(*args, **kwargs)
            ask = generator.get_candidates

            def first(input_ids: Any, *more: Any, **options: Any) -> tuple[Any, None]:
                del generator.get_candidates
                ask(input_ids, *more, **options)
                return input_ids, None

            generator.get_candidates = first
            return generator

        return made

    own = undo.part()
    try:
        patch(host, GUESS_MAKER, made_by, own)
        yield
    finally:
        own.run()
