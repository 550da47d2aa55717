"""Transformers' server with our model in it: its classes, each with what is ours."""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import AsyncIterator, Mapping
from contextlib import aclosing
from typing import Any, Final
from weakref import WeakValueDictionary

from openai.types.completion_usage import CompletionUsage
from starlette.requests import ClientDisconnect, Request
from transformers.cli.serving.chat_completion import ChatCompletionHandler
from transformers.cli.serving.model_manager import ModelManager
from transformers.cli.serving.utils import GenerateManager, GenerationState

from tokentrim.errors import DataError, TokentrimError, complaint, reason_of
from tokentrim.serve.transformers.answering import Ended, Served, TrimmedModel
from tokentrim.serve.transformers.processor import ServedProcessor
from tokentrim.serve.transformers.requests import Inquiry, read_request

UNAVAILABLE: Final = 503
_STOPPED: Final = "the server was stopped"
_LEFT: Final = "the client has left"
_FAILED: Final = 'data: {"error"'  # how transformers ends a stream; never inside a chunk, where quotes are escaped


class TrimmedModels(ModelManager):
    """The one model, which is loaded already."""

    def __init__(self, served: Served) -> None:
        self._served = served
        self._processor = ServedProcessor(served.loaded.processor, served.loaded.model)
        super().__init__(force_model=served.name)

    def _load_processor(self, *args: Any, **kwargs: Any) -> Any:
        return self._processor

    def _load_model(self, *args: Any, **kwargs: Any) -> Any:
        return self._served.loaded.model

    @staticmethod
    def process_model_name(model_id: str) -> str:
        """The model's name as it is: revisions were looked at when it was loaded."""
        return model_id


class TrimmedGenerating(GenerateManager):
    """One request after the other, each under the strategy."""

    def __init__(self, served: Served, asked: Mapping[str, Inquiry]) -> None:
        super().__init__()
        self._served, self._asked = served, asked

    def generate_streaming(
        self, model: Any, processor: Any, inputs: Any, gen_config: Any, request_id: str, response_parser: Any = None
    ) -> Any:
        """As transformers does."""
        model = self._trimmed(inputs, gen_config, request_id)
        return super().generate_streaming(model, processor, inputs, gen_config, request_id, response_parser)  # type: ignore[arg-type]

    async def generate_non_streaming(
        self, model: Any, processor: Any, inputs: Any, gen_config: Any, request_id: str
    ) -> Any:
        """As transformers does."""
        model = self._trimmed(inputs, gen_config, request_id)
        return await super().generate_non_streaming(model, processor, inputs, gen_config, request_id)  # type: ignore[arg-type]

    def _trimmed(self, inputs: Any, gen_config: Any, request_id: str) -> TrimmedModel:
        """What answers a request: here a stream has no status yet, so that one that cannot be is refused."""
        asked = self._asked[request_id]
        self._served.bound(asked, inputs, gen_config)
        return TrimmedModel(self._served, asked)


class TrimmedState(GenerationState):
    """Who generates."""

    def __init__(self, generating: TrimmedGenerating) -> None:
        super().__init__()
        self._generating = generating

    def get_manager(self, model_id: str, use_cb: bool = False) -> Any:
        """The one that knows the strategy."""
        return self._generating


class TrimmedChat(ChatCompletionHandler):
    """Answers of the chat API, with what was kept in their usage."""

    def __init__(self, served: Served) -> None:
        self._served = served
        self._stopping = False
        self._asked = WeakValueDictionary[str, Inquiry]()  # as long as somebody answers it
        generating = TrimmedGenerating(served, self._asked)
        super().__init__(model_manager=TrimmedModels(served), generation_state=TrimmedState(generating))

    def stop(self) -> None:
        """Break off all answers, and those that are asked for from now on."""
        self._stopping = True
        for asked in list(self._asked.values()):
            asked.ended = _STOPPED

    async def answer(self, request: Request) -> Any:
        """The response to a request.

        Raises:
            Ended: when the client has left, or the server stops.
            TokentrimError: when it cannot be answered.
            Exception: what generating raised.
        """
        try:
            text = await request.body()
        except ClientDisconnect as cause:
            raise Ended(_LEFT) from cause
        asked = read_request(text, self._served.name, self._served.spec, self._served.limits)
        name = f"chatcmpl-{uuid.uuid4().hex}"
        self._asked[name] = asked
        if self._stopping:
            asked.ended = _STOPPED
        # Who reads a stream is missed when the next part is sent.
        watch = None if asked.body.get("stream") else asyncio.create_task(_watch(request, asked))
        try:
            return await self.handle_request(asked.body, name)
        except asyncio.CancelledError:
            if not self._stopping:
                raise
            raise Ended(_STOPPED) from None
        except TokentrimError:
            raise
        except Exception as cause:
            if asked.begun:
                raise
            # Templates and processors differ in what they raise over a prompt.
            raise DataError(
                complaint("the prompt", "be accepted by the model's processor", hint=reason_of(cause))
            ) from cause
        finally:
            if watch is not None:
                watch.cancel()

    def _streaming(self, request_id: str, *args: Any, **kwargs: Any) -> Any:
        response = super()._streaming(request_id, *args, **kwargs)
        response.body_iterator = _told(self._asked[request_id], response.body_iterator)
        return response

    def _build_completion(self, request_id: str, content: str, *args: Any, usage: Any = None, **more: Any) -> Any:
        for stop in self._asked[request_id].stops:
            content = content.partition(stop)[0]
        return super()._build_completion(request_id, content, *args, usage=self._with_kept(request_id, usage), **more)

    def _build_chunk_sse(self, request_id: str = "", *args: Any, usage: Any = None, **more: Any) -> Any:
        return super()._build_chunk_sse(request_id, *args, usage=self._with_kept(request_id, usage), **more)

    def _with_kept(self, name: str, usage: Any) -> Any:
        """The usage with what was kept."""
        if usage is None:
            return None
        return CompletionUsage.model_validate({**usage.model_dump(), "tokentrim": self._asked[name].kept})

    def _build_generation_config(self, body: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        config = super()._build_generation_config(body, *args, **kwargs)
        if body.get("temperature"):
            config.do_sample = True  # a temperature means sampling to clients, whatever the model's own settings say
        return config


async def _watch(request: Request, asked: Inquiry) -> None:
    """Wait until the client has left, and note it."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
    asked.ended = asked.ended or _LEFT


async def _told(asked: Inquiry, parts: Any) -> AsyncIterator[str]:
    """A stream up to its end, or up to what went wrong in the words of an error's body."""
    async with aclosing(parts):
        async for part in parts:
            before, failed, _ = part.partition(_FAILED)
            if before:
                yield before
            if failed:
                yield f"data: {json.dumps(error_of(asked.failure)[1])}\n\n"
    yield "data: [DONE]\n\n"


def error_of(cause: BaseException | None) -> tuple[int, dict[str, Any]]:
    """(HTTP status, body) of what went wrong, in the form in which OpenAI's clients expect it."""
    ours = isinstance(cause, TokentrimError)
    if isinstance(cause, Ended):
        said = complaint("an answer", "be generated", hint=str(cause))
        return UNAVAILABLE, {"error": {"message": said, "type": "server_error", "param": None, "code": "Ended"}}
    said = str(cause) if ours else complaint("an answer", "be generated", hint=reason_of(cause or Exception("?")))
    bad = ours and cause.exit_code == 2
    kind = "invalid_request_error" if bad else "server_error"
    return 400 if bad else 500, {"error": {"message": said, "type": kind, "param": None, "code": type(cause).__name__}}
