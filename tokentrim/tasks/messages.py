"""Chat messages as a conversation of the model's processor, and its images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image

from tokentrim.errors import DataError, UnsupportedError, complaint
from tokentrim.reading import as_shown, load_image


@dataclass(frozen=True)
class Conversation:
    """A prompt.

    Attributes:
        turns: as chat templates take them, ``{"type": "image"}`` standing for the next image.
        images: RGB, in the order of their places.
    """

    turns: tuple[dict[str, Any], ...]
    images: tuple[Image.Image, ...]

    @property
    def text(self) -> str:
        """The words of the last user turn."""
        last = next((turn for turn in reversed(self.turns) if turn["role"] == "user"), self.turns[-1])
        return "".join(part["text"] for part in last["content"] if part["type"] == "text")

    @property
    def is_plain(self) -> bool:
        """Whether it is one user turn, of images and then one text."""
        if len(self.turns) != 1 or self.turns[0]["role"] != "user":
            return False
        return [part["type"] for part in self.turns[0]["content"]] == ["image"] * len(self.images) + ["text"]


def conversation_of(messages: Sequence[Mapping[str, Any]], whom: str, *, videos: int = 0) -> Conversation:
    """Read messages of the form ``{"role": ..., "content": [{"type": "text" | "image", ...}]}``.

    Args:
        messages: as a task's ``doc_to_messages`` returns them; an image's ``url`` is a picture or its file.
        whom: whose they are, for messages.
        videos: how many there are; ``{"type": "video"}`` stands for the next of them.

    Raises:
        UnsupportedError: when they hold anything but text, images and videos that are there.
        DataError: when they hold nothing, or an image cannot be read.
    """
    turns: list[dict[str, Any]] = []
    images: list[Image.Image] = []
    for message in messages:
        content: list[dict[str, Any]] = []
        for part in message["content"]:
            if part["type"] == "text":
                content.append({"type": "text", "text": part["text"]})
            elif part["type"] == "image":
                content.append({"type": "image"})
                images.append(_picture(part["url"], whom))
            elif part["type"] == "video" and videos:
                content.append({"type": "video"})
            else:
                raise UnsupportedError(
                    complaint(f"the prompts of {whom}", "hold text and images only", part["type"],
                              "choose a task about images")
                )  # fmt: skip
        turns.append({"role": message["role"], "content": content})
    if not turns:
        raise DataError(complaint(f"a prompt of {whom}", "have at least one message", list(messages)))
    return Conversation(tuple(turns), tuple(images))


def _picture(source: Any, whom: str) -> Image.Image:
    """An image that is there already, or in a file."""
    if isinstance(source, Image.Image):
        return as_shown(source)
    if isinstance(source, str):
        return load_image(source)
    raise DataError(complaint(f"an image of {whom}", "be a picture or a file", type(source).__name__))
