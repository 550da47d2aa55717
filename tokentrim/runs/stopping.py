"""Where answers end before their end token."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

import torch
from torch import Tensor
from transformers import StoppingCriteria

_SPECIAL: Final = 16  # tokens without text that may lie between those of a stop text


class StopsAtText(StoppingCriteria):
    """Ends an answer that holds a stop text, with any tokenizer: generate's own ``stop_strings`` cannot read them all.

    Only the end of an answer is looked at, where a text that was not there a token ago must be.

    Args:
        texts: the stop texts.
        decode: tokens [n] as text.
        start: length of the prompt in tokens.
    """

    def __init__(self, texts: Sequence[str], decode: Callable[[Tensor], str], start: int) -> None:
        self._texts, self._decode, self._start = texts, decode, start
        self._tail = max(map(len, texts)) + _SPECIAL

    def __call__(self, input_ids: Any, scores: Any, **kwargs: Any) -> Any:
        """Whether each row [B] has come to its end."""
        begin = max(self._start, input_ids.shape[1] - self._tail)
        ends = [any(text in self._decode(row[begin:]) for text in self._texts) for row in input_ids]
        return torch.tensor(ends, device=input_ids.device)
