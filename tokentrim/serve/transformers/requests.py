"""A request of the chat API: what it may say, its pictures decoded, and everything else refused by name."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field

from tokentrim.config.specs import Budget, StrategySpec
from tokentrim.config.validation import check
from tokentrim.config.yaml_reader import Where
from tokentrim.errors import DataError, TokentrimError, UnsupportedError, complaint, reason_of, unknown_name
from tokentrim.reading import as_shown

if TYPE_CHECKING:
    from PIL import Image

_HANDED_ON: Final = (
    "stream", "max_tokens", "temperature", "top_p", "frequency_penalty", "logit_bias", "tools", "chat_template_kwargs",
)  # fmt: skip
_SHOWN: Final = 60  # characters of what is no picture


class OwnBudget(BaseModel):
    """What a request may say of pruning, under the key ``tokentrim``."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    budget: float = Field(gt=0, le=1, description="share of the layer-mean visual tokens")


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


@dataclass(eq=False)
class Inquiry:
    """One request, while it is answered.

    Attributes:
        spec: the strategy, with the budget that its knob is solved for.
        body: what transformers' handler is handed, the pictures in it decoded.
        pictures: in the order of their places.
        seed: for sampling, where the request names one.
        stops: texts before which the answer ends.
        begun: whether the model was asked.
        kept: what was kept and spent, once the answer is there.
        failure: what ended the answer.
    """

    spec: StrategySpec
    body: dict[str, Any] = field(default_factory=dict[str, Any])
    pictures: list[Image.Image] = field(default_factory=list["Image.Image"])
    seed: int | None = None
    stops: tuple[str, ...] = ()
    begun: bool = False
    kept: dict[str, Any] | None = None
    failure: Exception | None = None


def read_request(text: bytes, name: str, spec: StrategySpec) -> Inquiry:
    """What a request asks of the model ``name`` that is served under ``spec``.

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
    asked.body |= {"model": name, "messages": _messages(request.messages, asked)}
    if request.max_completion_tokens is not None:
        asked.body["max_tokens"] = request.max_completion_tokens
    if request.generation_config is not None:
        asked.body["generation_config"] = _settings(request.generation_config)
    return asked


def _settings(given: dict[str, Any] | str) -> str:
    """Settings of ``generate`` as transformers' handler reads them.

    Raises:
        DataError: when they are none.
    """
    from transformers import GenerationConfig

    text = given if isinstance(given, str) else json.dumps(given)
    try:
        GenerationConfig(**json.loads(text))
    except Exception as cause:  # its checks raise what they like
        must = "be settings of transformers' generate"
        raise DataError(complaint("generation_config of the request", must, hint=reason_of(cause))) from cause
    return text


def _messages(messages: list[Any], asked: Inquiry) -> list[dict[str, Any]]:
    """The messages with their pictures decoded, which are noted in ``asked``."""
    found: list[dict[str, Any]] = []
    if not messages:
        raise DataError(complaint("messages of the request", "hold one message at least", messages))
    for place, message in enumerate(messages):
        what = f"messages[{place}] of the request"
        if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
            raise DataError(complaint(what, "be a mapping with a role", message, "such as {role: user, content: ...}"))
        content: Any = message.get("content")
        if isinstance(content, list):
            content = [_part(part, f"content[{index}] of {what}", asked) for index, part in enumerate(content)]
        elif not isinstance(content, str) and not (content is None and "tool_calls" in message):
            raise DataError(complaint(f"content of {what}", "be text or a list of parts", content))
        found.append({**message, "content": content})
    return found


def _part(part: Any, what: str, asked: Inquiry) -> dict[str, Any]:
    """One part of a message."""
    kind = part.get("type") if isinstance(part, Mapping) else None
    if kind == "text":
        if not isinstance(part.get("text"), str):
            raise DataError(complaint(what, "hold its text", part))
        return {"type": "text", "text": part["text"]}
    if kind != "image_url":
        raise UnsupportedError(
            complaint(f"the type of {what}", "be text or image_url", kind, "send the frames of a video as pictures")
        )
    url: Any = part.get("image_url")
    url = url.get("url") if isinstance(url, Mapping) else url
    asked.pictures.append(_picture(url, what))
    return {"type": "image_url", "image_url": asked.pictures[-1]}


def _picture(url: Any, what: str) -> Image.Image:
    """The picture of a data URL, as viewers show it.

    Raises:
        DataError: when it is no such URL, or holds no picture.
    """
    head, comma, data = url.partition(",") if isinstance(url, str) else ("", "", "")
    if not comma or not head.startswith("data:image/") or not head.endswith(";base64"):
        got = url[:_SHOWN] if isinstance(url, str) else url
        hint = "nothing is fetched and no file is read: send the bytes"
        raise DataError(complaint(f"the picture in {what}", "be a data: URL, data:image/png;base64,...", got, hint))
    from PIL import Image

    try:
        with Image.open(io.BytesIO(base64.b64decode(data, validate=True))) as file:
            return as_shown(file)
    except TokentrimError:
        raise
    except Exception as cause:  # Pillow's readers raise whatever the broken bytes led to
        raise DataError(complaint(f"the picture in {what}", "be readable", hint=reason_of(cause))) from cause
