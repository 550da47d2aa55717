"""Model inputs from questions: chat templates, padding, and the device and number format of the model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from tokentrim.errors import WHOLE, DataError, TokentrimError, complaint, reason_of

if TYPE_CHECKING:
    from torch import Tensor


def prepare_tokenizer(tokenizer: Any) -> None:
    """Left padding, so that every row of a batch ends where its answer begins."""
    tokenizer.padding_side = "left"
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token


def on_device(model: Any, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Model inputs where the model is, floating-point ones in its number format."""
    moved = {name: value.to(model.device) for name, value in inputs.items()}
    return {name: value.to(model.dtype) if value.is_floating_point() else value for name, value in moved.items()}


def prompt_inputs(processor: Any, questions: Sequence[str], images: Sequence[Sequence[Any]]) -> Any:
    """Model inputs of a batch of single-turn questions, left-padded, through the processor's own chat template.

    Args:
        processor: as :func:`load_model` returns it.
        questions: one text per row.
        images: the images of each row, in front of its text.

    Raises:
        DataError: when the processor refuses them.
    """
    turns = [single_turn(question, len(shown)) for question, shown in zip(questions, images, strict=True)]
    return conversation_inputs(processor, turns, images)


def single_turn(question: str, n_images: int) -> tuple[dict[str, Any], ...]:
    """A conversation of one user turn: images, then text."""
    content = [*({"type": "image"} for _ in range(n_images)), {"type": "text", "text": question}]
    return ({"role": "user", "content": content},)


def conversation_inputs(
    processor: Any,
    conversations: Sequence[Sequence[Mapping[str, Any]]],
    images: Sequence[Sequence[Any]],
    videos: Sequence[Sequence[Any]] = (),
) -> Any:
    """Model inputs of a batch of conversations, left-padded, each up to where the model's answer begins.

    Args:
        processor: as :func:`load_model` returns it.
        conversations: per row its turns, ``{"role": ..., "content": [...]}``, of ``{"type": "text", "text": ...}`` and
            ``{"type": "image"}`` or ``{"type": "video"}``.
        images: the images of each row, in the order of their places.
        videos: all videos, in the order of their places, each a list of its frames.

    Raises:
        DataError: when the processor refuses them.
    """
    shown_too = {"videos": [list(video) for video in videos], "do_sample_frames": False} if videos else {}
    texts: list[str] = []
    try:
        texts += [chat_text(processor, turns) for turns in conversations]
        begin = processor.tokenizer.bos_token
        # Some chat templates write the begin token themselves; a second one changes the answers.
        written = begin is not None and texts[0].startswith(begin)
        return processor(
            text=texts,
            images=[list(shown) for shown in images] if any(map(len, images)) else None,
            padding=True,
            return_tensors="pt",
            add_special_tokens=not written,
            **shown_too,
        )
    except TokentrimError:
        raise
    except Exception as cause:  # processors and chat templates differ in what they raise
        raise DataError(
            complaint("the prompt", "be accepted by the model's processor", texts[:3], reason_of(cause, WHOLE))
        ) from cause


def chat_text(processor: Any, turns: Sequence[Mapping[str, Any]]) -> str:
    """A conversation as text; a model without a chat template gets its placeholders and the plain words of one turn."""
    if getattr(processor, "chat_template", None) is None:
        if len(turns) != 1:
            raise DataError(
                complaint("a conversation of several turns", "meet a model with a chat template",
                          [turn["role"] for turn in turns], "save a chat_template with the model's processor")
            )  # fmt: skip
        return "".join(
            f"{processor.image_token}\n" if part["type"] == "image" else part["text"] for part in turns[0]["content"]
        )
    return processor.apply_chat_template(list(turns), add_generation_prompt=True, tokenize=False)
