"""Several turns about pictures: over one cache, or each a new prompt that holds all that was said."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import Tensor

from tokentrim.contracts.sites import ATTENTION_ROWS, FROM_PROMPT, Need
from tokentrim.errors import UnsupportedError, complaint
from tokentrim.loading import Loaded, chat_text, conversation_inputs, on_device, single_turn

if TYPE_CHECKING:
    from tokentrim.contracts.strategy import Strategy

_OF_TEXT: Final = {Need.TEXT_HIDDEN, Need.TEXT_KEYS, Need.TEXT_EMBEDS, Need.TEXT_IDS, Need.TEXT, Need.GUIDE}
ASKS: Final = ATTENTION_ROWS | FROM_PROMPT | _OF_TEXT
"""Needs that depend on what was asked: visual tokens see no text that stands behind them, and text sees them."""


def asks(strategy: Strategy) -> bool:
    """Whether what a strategy keeps of a picture depends on the question."""
    return bool(strategy.needed() & ASKS)


@dataclass
class Dialogue:
    """What was said about some pictures, and the cache that holds it.

    Attributes:
        loaded: who answers.
        pictures: in front of the first question.
        max_new_tokens: of an answer.
        anew: make each turn a new prompt, so that its question meets the whole pictures.
    """

    loaded: Loaded
    pictures: Sequence[Any]
    max_new_tokens: int = 64
    anew: bool = False
    _turns: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    _told: str = ""
    _answer: str = ""
    _said: Tensor | None = None
    _cache: Any = None

    def inputs(self, question: str) -> dict[str, Tensor]:
        """What ``generate`` is to be given for the next question, without asking it.

        Raises:
            UnsupportedError: when the chat template writes what was said otherwise than it was said.
            DataError: when the processor refuses the prompt.
        """
        first = not self._turns
        turns = [*self._turns, *single_turn(question, len(self.pictures) if first else 0)]
        if first or self.anew:
            made = conversation_inputs(self.loaded.processor, [turns], [self.pictures])
            return on_device(self.loaded.model, made)
        said = self._continued(chat_text(self.loaded.processor, turns))
        return {"input_ids": said, "attention_mask": torch.ones_like(said)}

    def ask(self, question: str) -> str:
        """The model's answer, greedily; to be called under ``trim``.

        Raises:
            TokentrimError: see :meth:`inputs`.
        """
        model, processor = self.loaded
        inputs = self.inputs(question)
        kept = {"past_key_values": self._cache} if self._said is not None and not self.anew else {}
        output = model.generate(
            **inputs, **kept, max_new_tokens=self.max_new_tokens, do_sample=False, return_dict_in_generate=True
        )
        self._turns += single_turn(question, 0 if self._turns else len(self.pictures))
        self._told = chat_text(processor, self._turns)
        self._said, self._cache = output.sequences, output.past_key_values
        new = output.sequences[0, inputs["input_ids"].shape[1] :]
        self._answer = processor.tokenizer.decode(new, skip_special_tokens=True).strip()
        self._turns.append({"role": "assistant", "content": [{"type": "text", "text": self._answer}]})
        return self._answer

    def _continued(self, text: str) -> Tensor:
        """int64 [1, T]: the tokens so far, and those of what the template writes behind the last answer."""
        if self._said is None:
            raise RuntimeError("nothing was said yet")
        behind = text[len(self._told) :]
        lead = behind.find(self._answer)
        if not text.startswith(self._told) or lead < 0 or behind[:lead].strip():
            raise UnsupportedError(
                complaint("the model's chat template", "write earlier turns as they were said, so that their cache can "
                          "be continued", text, "ask each turn anew: --anew")
            )  # fmt: skip
        rest = self._tokens(behind[lead + len(self._answer) :])
        said, ends = self._said, self.loaded.model.generation_config.eos_token_id
        last = int(said[0, -1])
        if last in (ends if isinstance(ends, list) else [ends]):  # in no cache yet; the template knows if it stays
            said = said[:, :-1]
        return torch.cat([said, torch.tensor([rest], dtype=said.dtype, device=said.device)], dim=1)

    def _tokens(self, rest: str) -> list[int]:
        """A text as it is tokenised behind the last answer: some tokenizers begin a text of its own with a blank."""
        tokenizer = self.loaded.processor.tokenizer

        def ids(words: str) -> list[int]:
            return list(tokenizer(words, add_special_tokens=False)["input_ids"])

        before, both = ids(self._answer), ids(self._answer + rest)
        return both[len(before) :] if both[: len(before)] == before else ids(rest)
