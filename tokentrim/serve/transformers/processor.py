"""The processor as transformers' server meets it: videos are frames that were read already, and answers end as told."""

from __future__ import annotations

import copy
import re
from typing import Any, Final

from transformers.cli.serving import utils

from tokentrim.errors import DataError, complaint
from tokentrim.loading import text_inputs

_OF_INPUTS: Final = ("num_frames", "load_audio_from_video", "tokenize", "return_tensors", "return_dict")
"""What transformers' server asks of a processor besides a conversation as text."""
_SHOWN: Final = {"image": "picture", "video": "video"}


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
        self._require_shown(turns, options)
        parts = [part for turn in turns for part in turn["content"]]
        videos, pictures = ([part["url"] for part in parts if part["type"] == kind] for kind in ("video", "image"))
        if not videos:
            return self._processor.apply_chat_template(turns, **options)
        return text_inputs(self._processor, [self._text(turns, options)], [pictures], videos)

    def _text(self, turns: list[dict[str, Any]], options: dict[str, Any]) -> str:
        worded = {name: value for name, value in options.items() if name not in _OF_INPUTS}
        return self._processor.apply_chat_template(turns, **worded, tokenize=False)

    def _require_shown(self, turns: list[dict[str, Any]], options: dict[str, Any]) -> None:
        """Refuse a picture or video that the chat template leaves out, such as those of some roles.

        Raises:
            DataError: when the prompt reads the same without it.
        """
        text: str | None = None
        for place, turn in enumerate(turns):
            for index, part in enumerate(turn["content"]):
                if part["type"] not in _SHOWN:
                    continue
                text = text or self._text(turns, options)
                without = {**turn, "content": [*turn["content"][:index], *turn["content"][index + 1 :]]}
                if self._text([*turns[:place], without, *turns[place + 1 :]], options) == text:
                    what = f"the {_SHOWN[part['type']]} in content[{index}] of messages[{place}] of the request"
                    must = "have a place in the prompt, and the model's chat template gives it none"
                    raise DataError(complaint(what, must, f"role {turn['role']}", "send it in a message of the user"))


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
