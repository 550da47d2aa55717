"""The model's own tokenizer: what a prompt's tokens say."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

from tokentrim.contracts.adapter import Layout
from tokentrim.errors import UnsupportedError, complaint, reason_of


@dataclass(frozen=True)
class Words:
    """Turns tokens into text.

    Attributes:
        tokenizer: of the model.
    """

    tokenizer: Any

    @classmethod
    def of(cls, layout: Layout) -> Words:
        """By the tokenizer where the model was loaded from.

        Raises:
            UnsupportedError: when there is none.
        """
        from transformers import AutoTokenizer

        config: Any = layout.entry.config
        name, auto = str(getattr(config, "name_or_path", "") or ""), cast(Any, AutoTokenizer)
        what, must = "the tokenizer of the model, whose text a strategy reads,", "lie where the model was loaded from"
        if not name:
            raise UnsupportedError(complaint(what, must, "a model that was made in memory", "load it from a folder"))
        try:
            return cls(auto.from_pretrained(name, local_files_only=True, trust_remote_code=False))
        except Exception as cause:  # transformers raises whatever a broken file led to
            hint = f"copy the tokenizer's files there ({reason_of(cause)})"
            raise UnsupportedError(complaint(what, must, name, hint)) from cause

    def pieces(self, tokens: Sequence[int]) -> tuple[str, ...]:
        """What each of ``tokens`` adds to the text, special ones left out; of a character, its last token all of it."""
        begin, done, found = 0, 0, list[str]()
        for end in range(1, len(tokens) + 1):
            # Beside the token before it, since a tokenizer may drop a space in front of the first.
            before, now = self._text(tokens[begin:done]), self._text(tokens[begin:end])
            whole = len(now) > len(before) and not now.endswith("\ufffd")
            found.append(now[len(before) :] if whole else "")
            if whole:
                begin, done = done, end
        return tuple(found)

    def _text(self, tokens: Sequence[int]) -> str:
        return str(self.tokenizer.decode(list(tokens), skip_special_tokens=True))
