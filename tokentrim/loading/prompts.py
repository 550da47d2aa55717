"""Model inputs from questions: chat templates, padding, videos, and the device and number format of the model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from tokentrim.errors import WHOLE, DataError, TokentrimError, UnsupportedError, complaint, reason_of
from tokentrim.reading import Video

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


def single_turn(question: str, n_images: int, n_videos: int = 0) -> tuple[dict[str, Any], ...]:
    """A conversation of one user turn: images, then videos, then text."""
    shown = [*({"type": "image"} for _ in range(n_images)), *({"type": "video"} for _ in range(n_videos))]
    return ({"role": "user", "content": [*shown, {"type": "text", "text": question}]},)


def takes_videos(processor: Any) -> bool:
    """Whether a processor makes model inputs of videos."""
    return getattr(processor, "video_processor", None) is not None


def require_watching(processor: Any, model: str, question: str) -> None:
    """Raise UnsupportedError unless a processor takes videos.

    Args:
        processor: of the model.
        model: its name, for the message.
        question: which is about a video, for the message.
    """
    if not takes_videos(processor):
        raise UnsupportedError(
            complaint(f"model {model!r}", f"take videos, which {question} is about",
                      f"its {type(processor).__name__} has no video processor",
                      "choose a model that does, or give frames as 'images'")
        )  # fmt: skip


def conversation_inputs(
    processor: Any,
    conversations: Sequence[Sequence[Mapping[str, Any]]],
    images: Sequence[Sequence[Any]],
    videos: Sequence[Video] = (),
) -> Any:
    """Model inputs of a batch of conversations, left-padded, each up to where the model's answer begins.

    Args:
        processor: as :func:`load_model` returns it.
        conversations: per row its turns, ``{"role": ..., "content": [...]}``, of ``{"type": "text", "text": ...}`` and
            ``{"type": "image"}`` or ``{"type": "video"}``.
        images: the images of each row, in the order of their places.
        videos: all videos of the batch, in the order of their places.

    Raises:
        DataError: when the processor refuses them.
    """
    texts: list[str] = []
    try:
        texts += [chat_text(processor, turns) for turns in conversations]
        return text_inputs(processor, texts, images, videos)
    except TokentrimError:
        raise
    except Exception as cause:  # processors and chat templates differ in what they raise
        raise DataError(
            complaint("the prompt", "be accepted by the model's processor", texts[:3], reason_of(cause, WHOLE))
        ) from cause


def text_inputs(
    processor: Any, texts: Sequence[str], images: Sequence[Sequence[Any]], videos: Sequence[Video] = ()
) -> Any:
    """Model inputs of a batch of conversations that were turned into text; else as :func:`conversation_inputs`.

    Raises:
        Exception: whatever the processor raises.
    """
    shown_too: dict[str, Any] = {}
    if videos:
        shown_too = {
            "videos": [list(video.frames) for video in videos],
            "video_metadata": [_about(video) for video in videos],
            "do_sample_frames": False,
        }
    begin = processor.tokenizer.bos_token
    # Some chat templates write the begin token themselves; a second one changes the answers.
    written = begin is not None and texts[0].startswith(begin)
    return processor(
        text=list(texts),
        images=[list(shown) for shown in images] if any(map(len, images)) else None,
        padding=True,
        return_tensors="pt",
        add_special_tokens=not written,
        **shown_too,
    )


def _about(video: Video) -> dict[str, Any]:
    """When frames are shown, as processors want to know it: some write it into the prompt."""
    taken = len(video.frames)
    return {"total_num_frames": taken, "fps": video.fps, "frames_indices": list(range(taken))}


def chat_text(processor: Any, turns: Sequence[Mapping[str, Any]]) -> str:
    """A conversation as text; a model without a chat template gets its placeholders and the plain words of one turn."""
    if getattr(processor, "chat_template", None) is None:
        if len(turns) != 1:
            raise DataError(
                complaint("a conversation of several turns", "meet a model with a chat template",
                          [turn["role"] for turn in turns], "save a chat_template with the model's processor")
            )  # fmt: skip
        return "".join(
            part["text"] if part["type"] == "text" else f"{getattr(processor, part['type'] + '_token')}\n"
            for part in turns[0]["content"]
        )
    return processor.apply_chat_template(list(turns), add_generation_prompt=True, tokenize=False)
