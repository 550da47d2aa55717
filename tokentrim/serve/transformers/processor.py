"""The processor as transformers' server meets it: videos are frames that were read already, and answers end as told."""

from __future__ import annotations

import copy
import re
from typing import Any, Final

from transformers.cli.serving import utils

from tokentrim.loading import text_inputs

_OF_INPUTS: Final = ("num_frames", "load_audio_from_video", "tokenize", "return_tensors", "return_dict")
"""What transformers' server asks of a processor besides a conversation as text."""


class ServedProcessor:
    """The processor of a served model.

    Attributes:
        tokenizer: its own, see :func:`answering_tokenizer`.
    """

    def __init__(self, processor: Any, model: Any) -> None:
        self._processor = processor
        self.tokenizer = answering_tokenizer(processor, model)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._processor, name)

    def apply_chat_template(self, turns: list[dict[str, Any]], **options: Any) -> Any:
        """Model inputs of a conversation; of videos, with the frames that are there instead of a sample of them."""
        parts = [part for turn in turns for part in turn["content"]]
        videos, pictures = ([part["url"] for part in parts if part["type"] == kind] for kind in ("video", "image"))
        if not videos:
            return self._processor.apply_chat_template(turns, **options)
        worded = {name: value for name, value in options.items() if name not in _OF_INPUTS}
        text = self._processor.apply_chat_template(turns, **worded, tokenize=False)
        return text_inputs(self._processor, [text], [pictures], videos)


def answering_tokenizer(processor: Any, model: Any) -> Any:
    """The processor's tokenizer, or a copy that says where an answer begins and ends.

    For some types of models transformers' server takes ChatML for granted. Where a chat template writes something else,
    it would give the prompt out as the answer.
    """
    tokenizer, find = processor.tokenizer, getattr(utils, "get_response_template", None)
    assumed: Any = find(processor, model) if find is not None else None
    anchor = assumed.get("start_anchor") if isinstance(assumed, dict) else None
    if not anchor or getattr(processor, "chat_template", None) is None:
        return tokenizer
    turn = {"role": "user", "content": [{"type": "text", "text": "?"}]}
    if anchor in processor.apply_chat_template([turn], add_generation_prompt=True, tokenize=False):
        return tokenizer
    told = copy.copy(tokenizer)
    ends = "|".join(map(re.escape, tokenizer.all_special_tokens))
    content = {"close_pattern": rf"\s*(?:{ends})", "content": "text"}
    told.response_template = {
        "defaults": {"role": "assistant"},
        "start_anchor_pattern": r"\Z",  # where the prompt ends
        "fields": {"content": content},
    }
    return told
