"""From a row of a table to a question: what each column means, and what makes a row one that cannot be asked."""

from __future__ import annotations

import io
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from PIL import Image

from tokentrim.contracts.tasks import Split
from tokentrim.errors import DataError, TokentrimError, complaint, nearest, reason_of
from tokentrim.reading import Video, as_shown, frame_files, load_image, load_video
from tokentrim.tasks.messages import Conversation, conversation_of
from tokentrim.tasks.metrics import LETTERS, Gold
from tokentrim.tasks.table import Row

COLUMNS: Final = (
    "image", "images", "video", "videos", "frames", "question", "messages", "answer", "answers", "choices", "id",
    "split", "group",
)  # fmt: skip
_IMAGE: Final = ("image", "images", "file_name", "file_names")  # the latter as the Hub's image folders call them
_VIDEO: Final = ("video", "videos")
_FRAMES: Final = 16
_MOST_FRAMES: Final = 1024
_SPLITS: Final[Mapping[str, Split]] = {
    "test": "test", "calibration": "calibration", "train": "calibration", "validation": "calibration",
}  # fmt: skip
_LETTERED: Final = "Answer with the option's letter from the given choices directly."
"""What LLaVA-1.5 was trained and is evaluated with; other models understand it as well."""


@dataclass(frozen=True)
class Picture:
    """A picture of a question: a file, or its bytes."""

    source: Path | bytes

    def open(self) -> Image.Image:
        """As RGB.

        Raises:
            DataError: when it cannot be decoded.
        """
        if isinstance(self.source, Path):
            return load_image(self.source)
        try:
            with Image.open(io.BytesIO(self.source)) as file:
                return as_shown(file)
        except Exception as cause:  # Pillow's readers raise whatever the broken bytes led to
            raise DataError(
                complaint("the image", "be readable bytes of a PNG or JPEG", hint=reason_of(cause))
            ) from cause


@dataclass(frozen=True)
class Film:
    """A video of a question: its file, or a folder of its frames, and how many of them are asked about."""

    source: Path
    frames: int

    def open(self) -> Video:
        """Its frames.

        Raises:
            DataError: when it cannot be decoded.
            UnsupportedError: when nothing that decodes it is installed.
        """
        return load_video(self.source, self.frames)


@dataclass(frozen=True)
class Question:
    """A question of a file, its pictures not yet read.

    Attributes:
        place: file and line, for messages.
        id: its own, or its file's name with its line.
        split: to calibrate or to test on.
        group: what its file says it belongs to; "" where nothing.
        text: of the prompt, with its choices.
        gold: what is right.
        pictures: in the order of their places.
        turns: a conversation in place of the text, with ``{"type": "image"}`` for each picture, and
            ``{"type": "video"}`` for each video.
        films: videos, in the order of their places.
    """

    place: str
    id: str
    split: Split
    group: str
    text: str
    gold: Gold
    pictures: tuple[Picture, ...]
    turns: tuple[Mapping[str, Any], ...] | None = None
    films: tuple[Film, ...] = ()


def question_of(row: Row, folder: Path) -> Question:
    """The question of a row.

    Args:
        row: of a table.
        folder: from which its pictures' paths are meant.

    Raises:
        ValueError: says what is wrong with the row.
    """
    values = row.values
    pictures = [_picture(source, folder) for source in _sources(values, _IMAGE)]
    frames = _frames(values)
    films = [_film(source, folder, frames) for source in _sources(values, _VIDEO)]
    choices = _texts(values, "choices") if "choices" in values else ()
    if len(choices) == 1 or len(choices) > len(LETTERS):
        raise ValueError(f"'choices' must list 2 to {len(LETTERS)} texts; got {len(choices)}")
    gold = Gold(_answers(values, choices), choices)
    text, turns = _prompt(values, pictures, len(films), choices, folder)
    if not pictures and not films:
        raise ValueError(_missing("image", values, "the picture's file, or a 'video'"))
    split = _SPLITS.get(str(values.get("split", "test")).lower())
    if split is None:
        raise ValueError(f"'split' must be one of {', '.join(_SPLITS)}; got {values['split']!r}")
    name = str(values.get("id", row.place.rsplit("/", 1)[-1]))
    return Question(
        row.place, name, split, str(values.get("group", "")), text, gold, tuple(pictures), turns, tuple(films)
    )  # fmt: skip


def _sources(values: Mapping[str, Any], columns: Sequence[str]) -> list[Any]:
    """What a row says of its pictures, or of its videos."""
    given = [name for name in columns if name in values]
    if len(given) > 1:
        raise ValueError(f"a question must name its {columns[0]}s once; got both {given[0]!r} and {given[1]!r}")
    listed: Any = values[given[0]] if given else []
    return list(listed) if isinstance(listed, list | tuple) else [listed]


def _frames(values: Mapping[str, Any]) -> int:
    """How many frames of its videos a row asks about."""
    wanted: Any = values.get("frames", _FRAMES)
    if "frames" in values and not any(name in values for name in _VIDEO):
        raise ValueError("'frames' must stand beside a 'video'; the question has none")
    number: Any = int(wanted) if isinstance(wanted, str) and wanted.strip().isdecimal() else wanted
    if not isinstance(number, int) or isinstance(number, bool) or not 1 <= number <= _MOST_FRAMES:
        raise ValueError(f"'frames' must be a whole number from 1 to {_MOST_FRAMES}; got {wanted!r}")
    return number


def _film(source: Any, folder: Path, frames: int) -> Film:
    """A video that is there; it is decoded when it is asked about."""
    if not isinstance(source, str):
        raise ValueError(f"a video must be a path; got {type(source).__name__}")
    path = _path(source, folder, "video")
    if path.is_dir():
        try:
            frame_files(path)
        except DataError as cause:
            raise ValueError(str(cause)) from cause
    elif not path.is_file():
        raise ValueError(f"the video must be an existing file, or a folder of frames; got {source!r}: {path}")
    return Film(path, frames)


def _path(source: str, folder: Path, what: str) -> Path:
    """Where a file is meant."""
    if "://" in source:
        raise ValueError(f"the {what} must be a file, because nothing is downloaded; got {source!r}")
    return Path(os.path.normpath(folder / source))


def _picture(source: Any, folder: Path) -> Picture:
    """A picture that is there and whose beginning is an image's."""
    if isinstance(source, Mapping):  # as datasets of the Hub hold images in parquet
        source = source.get("bytes") or source.get("path")
    if isinstance(source, bytes):
        found = Picture(source)
    elif isinstance(source, str):
        path = _path(source, folder, "image")
        if not path.is_file():
            raise ValueError(f"the image must be an existing file; got {source!r}, which means {path}")
        found = Picture(path)
    else:
        raise ValueError(f"an image must be a path, or bytes in parquet; got {type(source).__name__}")
    try:
        Image.open(found.source if isinstance(found.source, Path) else io.BytesIO(found.source)).close()
    except Exception as cause:  # Pillow's readers raise whatever the broken file led to
        what = repr(source) if isinstance(source, str) else f"{len(found.source)} bytes"  # type: ignore[arg-type]
        raise ValueError(f"the image must be one that Pillow reads; got {what}: {type(cause).__name__}") from cause
    return found


def _texts(values: Mapping[str, Any], name: str) -> tuple[str, ...]:
    """A column of texts; numbers and truth values are what JSON makes of words that look so."""
    listed: Any = values[name]
    listed = listed if isinstance(listed, list | tuple) else [listed]
    found: list[str] = []
    for item in listed:
        if isinstance(item, bool):
            item = "yes" if item else "no"
        if not isinstance(item, str | int | float) or item != item:
            raise ValueError(f"{name!r} must be text; got {type(item).__name__}")
        if not str(item).strip():
            raise ValueError(f"{name!r} must not be empty; got {item!r}")
        found.append(str(item))
    if not found:
        raise ValueError(f"{name!r} must not be empty")
    return tuple(found)


def _answers(values: Mapping[str, Any], choices: Sequence[str]) -> tuple[str, ...]:
    """The right answers; of a multiple choice their letters."""
    given = [name for name in ("answer", "answers") if name in values]
    if not given:
        raise ValueError(_missing("answer", values, "the right answer, or a list of 'answers'"))
    if len(given) > 1:
        raise ValueError("a question must have 'answer' or 'answers', not both")
    said: Any = values[given[0]]
    if choices and _is_number(said) and not (isinstance(said, str) and said.strip() in choices):
        place = int(said)
        if not 0 <= place < len(choices):
            raise ValueError(f"a number as the answer must be a choice's, from 0 to {len(choices) - 1}; got {place}")
        if str(place) in choices and choices[place] != str(place):
            raise ValueError(f"the answer must be a letter: {place} is one choice's text and another's number")
        return (LETTERS[place],)
    texts = _texts(values, given[0])
    return tuple(LETTERS[choices.index(text)] if text in choices else text for text in texts) if choices else texts


def _is_number(said: Any) -> bool:
    """Whether an answer may be a choice's number; cells of CSV are text."""
    if isinstance(said, str):
        return said.strip().isdecimal()
    return isinstance(said, int) and not isinstance(said, bool)


def _prompt(
    values: Mapping[str, Any], pictures: list[Picture], videos: int, choices: Sequence[str], folder: Path
) -> tuple[str, tuple[Mapping[str, Any], ...] | None]:
    """The words of the question, and its conversation where it is one; its pictures join the others."""
    if "messages" in values and "question" in values:
        raise ValueError("a question must have 'question' or 'messages', not both")
    if "messages" in values:
        talk = _conversation(values["messages"], pictures, videos, folder, _options(choices))
        return talk.text, talk.turns
    if "question" not in values:
        raise ValueError(_missing("question", values, "the text that is asked"))
    text = values["question"]
    if not isinstance(text, str) or not text.strip():
        raise ValueError(f"'question' must be text; got {text!r}")
    return text + _options(choices), None


def _options(choices: Sequence[str]) -> str:
    """What stands under a question with choices."""
    options = (f"{letter}. {option}" for letter, option in zip(LETTERS, choices, strict=False))
    return "\n".join(("", *options, _LETTERED)) if choices else ""


def _conversation(messages: Any, pictures: list[Picture], videos: int, folder: Path, options: str) -> Conversation:
    """A conversation; an image without a source of its own is the next of the row's, and so is a video.

    ``options`` go under the last turn.
    """
    own, turns = list(pictures), list[dict[str, Any]]()
    pictures.clear()
    if not isinstance(messages, list) or not all(isinstance(turn, Mapping) for turn in messages):
        raise ValueError("'messages' must be a list of {role, content}")
    stand_in, watched = Image.new("RGB", (1, 1)), 0
    for turn in messages:
        content: Any = turn.get("content")
        parts: list[Any] = [{"type": "text", "text": content}] if isinstance(content, str) else list(content or ())
        shown: list[dict[str, Any]] = []
        for part in parts:
            part = dict(part)
            if part.get("type") == "image":
                source = next((part[key] for key in ("image", "path", "url") if key in part), None)
                if source is None and not own:
                    raise ValueError("'messages' must not have more images than 'images' lists")
                pictures.append(own.pop(0) if source is None else _picture(source, folder))
                part = {"type": "image", "url": stand_in}
            watched += part.get("type") == "video"
            shown.append(part)
        turns.append({"role": turn.get("role"), "content": shown})
    if own:
        raise ValueError(f"'messages' must have a place for every image; {len(own)} of 'images' have none")
    if watched != videos:
        raise ValueError(
            f"'messages' must have a place for each of the {videos} in 'video', and no more; got {watched}"
        )
    if not turns or turns[-1]["role"] != "user":
        raise ValueError("'messages' must end with a turn of the user")
    if options:
        turns[-1]["content"].append({"type": "text", "text": options})
    try:
        return conversation_of(turns, "the question", videos=videos)
    except (TokentrimError, KeyError, TypeError) as cause:
        raise ValueError(f"'messages' must be turns of text and images: {cause}") from cause


def _missing(name: str, values: Mapping[str, Any], meaning: str) -> str:
    """What a row lacks, and the column that may have been meant."""
    others = [other for other in values if other not in COLUMNS]
    close = nearest(name, others)
    hint = f"is {close!r} meant?" if close else f"columns: {', '.join(values) or 'none'}"
    return f"{name!r} must be given: {meaning} ({hint})"
