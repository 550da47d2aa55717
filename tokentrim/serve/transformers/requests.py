"""A request of the chat API: what it may say, its pictures and videos decoded, and everything else refused by name."""

from __future__ import annotations

import base64
import io
import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from tempfile import NamedTemporaryFile
from typing import TYPE_CHECKING, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field

from tokentrim.config.specs import Budget, StrategySpec
from tokentrim.config.validation import check
from tokentrim.config.yaml_reader import Where
from tokentrim.errors import DataError, TokentrimError, UnsupportedError, complaint, reason_of, suggestion, unknown_name
from tokentrim.reading import Video, as_shown, load_video

if TYPE_CHECKING:
    from PIL import Image

_HANDED_ON: Final = (
    "stream", "temperature", "top_p", "frequency_penalty", "tools", "chat_template_kwargs",
)  # fmt: skip
_IN_MESSAGE: Final = ("role", "content", "name", "reasoning_content", "tool_calls", "tool_call_id")
_SHOWN: Final = 60  # characters of what is no picture
_FRAMES: Final = 16
"""Frames of a video at most, where a request says nothing."""
_NUM_FRAMES: Final = "num_frames"
_OF_MESSAGES: Final = ("messages", "tools", "add_generation_prompt")
"""Variables of a chat template that are what a request says elsewhere, or that the server sets."""
_FILMS: Final = ((4, b"ftyp", ".mp4"), (0, b"\x1a\x45\xdf\xa3", ".webm"), (8, b"AVI ", ".avi"), (0, b"GIF8", ".gif"))
"""What files of videos hold at which byte. Decoders know more: playlists, too, which name files and addresses."""


class OwnBudget(BaseModel):
    """What a request may say of pruning, under the key ``tokentrim``."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    budget: float = Field(gt=0, le=1, description="share of the layer-mean visual tokens")


class Settings(BaseModel):
    """What a request may say under ``generation_config``: what shapes one answer, not what comes back of it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_new_tokens: int | None = Field(default=None, ge=1)
    min_new_tokens: int | None = Field(default=None, ge=0)
    max_time: float | None = Field(default=None, gt=0)
    do_sample: bool | None = None
    temperature: float | None = Field(default=None, gt=0)
    top_k: int | None = Field(default=None, ge=0)
    top_p: float | None = Field(default=None, gt=0, le=1)
    min_p: float | None = Field(default=None, ge=0, le=1)
    typical_p: float | None = Field(default=None, gt=0, le=1)
    epsilon_cutoff: float | None = Field(default=None, ge=0, lt=1)
    eta_cutoff: float | None = Field(default=None, ge=0, lt=1)
    repetition_penalty: float | None = Field(default=None, gt=0)
    no_repeat_ngram_size: int | None = Field(default=None, ge=0)
    num_beams: int | None = Field(default=None, ge=1)
    length_penalty: float | None = None
    early_stopping: bool | None = None
    num_return_sequences: Literal[1] | None = None
    suppress_tokens: list[int] | None = None
    begin_suppress_tokens: list[int] | None = None
    eos_token_id: int | list[int] | None = None
    pad_token_id: int | None = None
    renormalize_logits: bool | None = None
    remove_invalid_values: bool | None = None
    use_cache: bool | None = None
    cache_implementation: str | None = None


class ChatRequest(BaseModel):
    """The body of ``/v1/chat/completions``: what is served, and what may be said because it changes nothing."""

    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True)

    messages: list[Any] = Field(description="the conversation so far")
    model: str | None = Field(default=None, description="the model as it was started")
    stream: bool | None = None
    max_tokens: int | None = Field(default=None, ge=1)
    max_completion_tokens: int | None = Field(default=None, ge=1)
    temperature: float | None = Field(default=None, ge=0, le=2)
    top_p: float | None = Field(default=None, gt=0, le=1)
    seed: int | None = Field(default=None, ge=0, lt=1 << 63)
    stop: str | list[str] | None = None
    frequency_penalty: float | None = Field(default=None, gt=-1, le=2)
    logit_bias: dict[str, float] | None = None
    tools: list[Any] | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    generation_config: dict[str, Any] | str | None = Field(
        default=None, description="settings of transformers' generate, instead of the model's own"
    )
    tokentrim: dict[str, Any] | None = Field(default=None, description="a budget of its own: {budget: 0.25}")
    # Known to the API, and served in one way alone.
    n: Literal[1] | None = None
    logprobs: Literal[False] | None = None
    top_logprobs: Literal[0] | None = None
    presence_penalty: Literal[0] | None = None
    response_format: Any = None
    modalities: Any = None
    # Known to the API, and of no meaning here.
    stream_options: Any = None
    user: Any = None
    metadata: Any = None
    store: Any = None
    service_tier: Any = None


@dataclass(frozen=True)
class ModelLimits:
    """What of a model bounds a request.

    Attributes:
        usual: new tokens of an answer whose request names no limit.
        most: positions: tokens of a prompt and its answer together.
        vocabulary: number of token ids.
        videos: whether its processor takes any.
        template: the text of its chat template.
    """

    usual: int
    most: int
    vocabulary: int
    videos: bool = False
    template: str = ""


@dataclass(eq=False)
class Inquiry:
    """One request, while it is answered.

    Attributes:
        spec: the strategy, with the budget that its knob is solved for.
        body: what transformers' handler is handed, the pictures in it decoded.
        limit: new tokens at most.
        named: the field of the request that names it; empty where none does.
        pictures: in the order of their places.
        videos: in the order of theirs.
        seed: for sampling, where the request names one.
        stops: texts before which the answer ends.
        begun: whether the model was asked.
        ended: why nobody waits for the answer any more; generating looks at it before every token.
        kept: what was kept and spent, once the answer is there.
        failure: what ended the answer.
    """

    spec: StrategySpec
    body: dict[str, Any] = field(default_factory=dict[str, Any])
    limit: int = 1
    named: str = ""
    pictures: list[Image.Image] = field(default_factory=list["Image.Image"])
    videos: list[Video] = field(default_factory=list[Video])
    seed: int | None = None
    stops: tuple[str, ...] = ()
    begun: bool = False
    ended: str = ""
    kept: dict[str, Any] | None = None
    failure: Exception | None = None

    @property
    def shown(self) -> int:
        """How many pictures and videos it is about."""
        return len(self.pictures) + len(self.videos)


def read_request(text: bytes, name: str, spec: StrategySpec, limits: ModelLimits) -> Inquiry:
    """What a request asks of the model ``name`` that is served under ``spec`` and bounded by ``limits``.

    Raises:
        ConfigError: when a field is unknown, missing or malformed; names the nearest one.
        DataError: when the text is no JSON, or a picture or message in it cannot be used.
        UnknownNameError: when it is for another model.
        UnsupportedError: when it asks for what is not served.
    """
    try:
        data: Any = json.loads(text)
    except (ValueError, RecursionError) as cause:
        raise DataError(complaint("the body of a request", "be JSON", hint=reason_of(cause))) from cause
    request = check(ChatRequest, data, "the request", Where())
    if request.model not in (None, name):
        raise unknown_name("model of the request", str(request.model), [name])
    for given, only in (("response_format", {"type": "text"}), ("modalities", ["text"])):
        if getattr(request, given) not in (None, only):
            raise UnsupportedError(
                complaint(f"{given} of the request", f"be {json.dumps(only)}", getattr(request, given), "leave it out")
            )
    stops = (request.stop,) if isinstance(request.stop, str) else tuple(request.stop or ())
    if stops and (request.stream or not all(stops)):
        got = "a stream" if request.stream else list(stops)
        must = "come without stream, and not be empty: what a stream has sent cannot be taken back"
        raise UnsupportedError(complaint("stop of the request", must, got, "leave one of the two out"))
    if request.tokentrim is not None:
        own = check(OwnBudget, request.tokentrim, "tokentrim of the request", Where())
        spec = replace(spec, budget=Budget(layer_mean_ratio=own.budget))
    asked = Inquiry(spec, seed=request.seed, stops=stops)
    asked.body = {key: value for key in _HANDED_ON if (value := getattr(request, key)) is not None}
    asked.body |= {"model": name, "messages": _messages(request.messages, asked, limits, _frames(request, limits))}
    if request.logit_bias:
        asked.body["logit_bias"] = _biases(request.logit_bias, limits)
    settings = Settings()
    if request.generation_config is not None:
        settings, asked.body["generation_config"] = _settings(request.generation_config, bool(request.stream), limits)
    asked.named, asked.limit = _limit(
        {
            "max_completion_tokens": request.max_completion_tokens,
            "max_tokens": request.max_tokens,
            "max_new_tokens in generation_config": settings.max_new_tokens,
        },
        limits,
    )
    asked.body["max_tokens"] = asked.limit  # always: a configuration without one means 20 tokens to generate
    return asked


def _limit(named: Mapping[str, int | None], limits: ModelLimits) -> tuple[str, int]:
    """The limit of an answer and the field that names it: the first, or nothing and the usual one.

    Raises:
        DataError: when one is beyond the model.
    """
    given = {key: value for key, value in named.items() if value is not None}
    for key, value in given.items():
        if value > limits.most:
            must = f"be at most {limits.most}, what the model has positions for"
            raise DataError(complaint(f"{key} of the request", must, value))
    return next(iter(given.items()), ("", limits.usual))


def _biases(given: Mapping[str, float], limits: ModelLimits) -> dict[str, float]:
    """Biases by token id.

    Raises:
        DataError: when an id is none of the model's, or a bias is not finite.
    """
    for key, bias in given.items():
        if not (key.isascii() and key.isdigit() and len(key) < _SHOWN and int(key) < limits.vocabulary):
            must = f"be a token id of the model, 0 to {limits.vocabulary - 1}"
            raise DataError(complaint("each key of logit_bias of the request", must, key))
        if not math.isfinite(bias):
            raise DataError(complaint(f"logit_bias of the request for token {key}", "be a finite number", bias))
    return {str(int(key)): bias for key, bias in given.items()}


def _settings(given: dict[str, Any] | str, stream: bool, limits: ModelLimits) -> tuple[Settings, str]:
    """Settings of ``generate``, and as transformers' handler reads them.

    Raises:
        ConfigError: when one is unknown, not served or malformed.
        DataError: when they are none, or name a token that the model lacks.
        UnsupportedError: when a stream asks for beams.
    """
    from transformers import GenerationConfig

    what = "generation_config of the request"
    try:
        data: Any = json.loads(given) if isinstance(given, str) else given
    except (ValueError, RecursionError) as cause:
        must = "be settings of transformers' generate"
        raise DataError(complaint(what, must, hint=reason_of(cause))) from cause
    found = check(Settings, data, what, Where())
    text = json.dumps(found.model_dump(exclude_none=True))
    for key in ("suppress_tokens", "begin_suppress_tokens", "eos_token_id", "pad_token_id"):
        tokens: Any = getattr(found, key)
        for token in tokens if isinstance(tokens, list) else [] if tokens is None else [tokens]:
            if not 0 <= token < limits.vocabulary:
                must = f"name token ids of the model, 0 to {limits.vocabulary - 1}"
                raise DataError(complaint(f"{key} of {what}", must, token))
    if stream and (found.num_beams or 1) > 1:
        must = "be 1 in a stream: what beams say is known at the end alone"
        raise UnsupportedError(complaint(f"num_beams of {what}", must, found.num_beams, "leave stream out"))
    try:
        GenerationConfig(**json.loads(text))
    except Exception as cause:  # its checks raise what they like
        raise DataError(complaint(what, "be settings of transformers' generate", hint=reason_of(cause))) from cause
    return found, text


def _known(given: Mapping[str, Any], names: Iterable[str], what: str) -> None:
    """Refuse a key that is none of ``names``.

    Raises:
        DataError: names the nearest one.
    """
    for key in given:
        if key not in names:
            raise DataError(complaint(f"each key of {what}", "be a known one", key, suggestion(key, names)))


def _frames(request: ChatRequest, limits: ModelLimits) -> int:
    """How many frames of a video are taken at most; said as transformers' server is told.

    Raises:
        DataError: when it is no such number, or what stands beside it is no variable of the chat template.
    """
    given = request.chat_template_kwargs or {}
    for key in given:
        spelt = re.search(rf"\b{re.escape(key)}\b", limits.template)
        if key != _NUM_FRAMES and (key in _OF_MESSAGES or not spelt):
            what, must = "each key of chat_template_kwargs of the request", "be a variable of the model's chat template"
            raise DataError(complaint(what, must, key, suggestion(key, [_NUM_FRAMES])))
    wanted: Any = given.get(_NUM_FRAMES, _FRAMES)
    if not isinstance(wanted, int) or isinstance(wanted, bool) or wanted < 1:
        raise DataError(complaint("num_frames in chat_template_kwargs", "be a whole number of at least 1", wanted))
    return wanted


def _messages(messages: list[Any], asked: Inquiry, limits: ModelLimits, frames: int) -> list[dict[str, Any]]:
    """The messages with their pictures and ``frames`` of each video decoded, which are noted in ``asked``."""
    found: list[dict[str, Any]] = []
    if not messages:
        raise DataError(complaint("messages of the request", "hold one message at least", messages))
    for place, message in enumerate(messages):
        what = f"messages[{place}] of the request"
        if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
            raise DataError(complaint(what, "be a mapping with a role", message, "such as {role: user, content: ...}"))
        message: dict[str, Any] = {key: value for key, value in message.items() if value is not None}
        _known(message, _IN_MESSAGE, what)
        content: Any = message.get("content")
        before = asked.shown
        if isinstance(content, list):
            content = [
                _part(part, f"content[{index}] of {what}", asked, limits, frames) for index, part in enumerate(content)
            ]
        elif not isinstance(content, str) and not (content is None and "tool_calls" in message):
            raise DataError(complaint(f"content of {what}", "be text or a list of parts", content))
        if "tool_calls" in message and asked.shown > before:
            hint = "send the pictures in a message of their own"
            raise UnsupportedError(complaint(what, "hold tool_calls or pictures, not both", hint=hint))
        found.append({**message, "content": content})
    return found


def _part(part: Any, what: str, asked: Inquiry, limits: ModelLimits, frames: int) -> dict[str, Any]:
    """One part of a message."""
    kind = part.get("type") if isinstance(part, Mapping) else None
    if kind == "text":
        if not isinstance(part.get("text"), str):
            raise DataError(complaint(what, "hold its text", part))
        _known(part, ("type", "text"), what)
        return {"type": "text", "text": part["text"]}
    if kind == "video_url" and not limits.videos:
        must = "be text or image_url: the model's processor takes no videos"
        raise UnsupportedError(
            complaint(
                f"the type of {what}", must, kind, "send the frames of a video as pictures, or serve another model"
            )
        )
    if kind not in ("image_url", "video_url"):
        raise UnsupportedError(complaint(f"the type of {what}", "be text, image_url or video_url", kind))
    _known(part, ("type", kind), what)
    url: Any = part.get(kind)
    if isinstance(url, Mapping):
        _known(url, ("url", "detail") if kind == "image_url" else ("url",), f"{kind} in {what}")
        if url.get("detail") not in (None, "auto"):
            hint = "the model's processor alone decides on a picture's size"
            raise UnsupportedError(complaint(f"detail of image_url in {what}", "be auto", url["detail"], hint))
        url = url.get("url")
    if kind == "video_url":
        asked.videos.append(_video(url, f"the video in {what}", frames))
        return {"type": kind, kind: {"url": asked.videos[-1]}}
    asked.pictures.append(_picture(url, f"the picture in {what}"))
    return {"type": kind, kind: asked.pictures[-1]}


def _data(url: Any, whose: str, kinds: tuple[str, ...], example: str) -> str:
    """What a data URL of one of some kinds holds, in base64.

    Raises:
        DataError: when it is none.
    """
    head, comma, data = url.partition(",") if isinstance(url, str) else ("", "", "")
    if not comma or not head.startswith(tuple(f"data:{kind}" for kind in kinds)) or not head.endswith(";base64"):
        got = url[:_SHOWN] if isinstance(url, str) else url
        hint = "nothing is fetched and no file is read: send the bytes"
        raise DataError(complaint(whose, f"be a data: URL, data:{example};base64,...", got, hint))
    return data


def _picture(url: Any, whose: str) -> Image.Image:
    """The picture of a data URL, as viewers show it.

    Raises:
        DataError: when it is no such URL, or holds no picture.
    """
    data = _data(url, whose, ("image/",), "image/png")
    from PIL import Image

    try:
        with Image.open(io.BytesIO(base64.b64decode(data, validate=True))) as file:
            return as_shown(file)
    except TokentrimError:
        raise
    except Exception as cause:  # Pillow's readers raise whatever the broken bytes led to
        raise DataError(complaint(whose, "be readable", hint=reason_of(cause))) from cause


def _video(url: Any, whose: str, frames: int) -> Video:
    """Frames of the video of a data URL, at equal distances.

    Raises:
        DataError: when it is no such URL, or holds no video.
        UnsupportedError: when no library that decodes it is installed.
    """
    data = _data(url, whose, ("video/", "image/gif"), "video/mp4")
    try:
        film = base64.b64decode(data, validate=True)
    except ValueError as cause:
        raise DataError(complaint(whose, "be readable", hint=reason_of(cause))) from cause
    ending = next((end for place, mark, end in _FILMS if film[place : place + len(mark)] == mark), None)
    if ending is None:
        raise DataError(complaint(whose, "be an MP4, WebM, Matroska, AVI or GIF file", hint="convert it"))
    with NamedTemporaryFile(suffix=ending) as file:  # decoders read files
        file.write(film)
        file.flush()
        try:
            return replace(load_video(file.name, frames), name="")
        except TokentrimError as error:  # which names that file
            said = str(error).replace(f"the video {file.name}", whose).replace("the video must", f"{whose} must")
            raise type(error)(said.replace(file.name, f"{len(film)} bytes")) from error
