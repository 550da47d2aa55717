"""The server: its addresses, what becomes of errors, and its start and end."""

from __future__ import annotations

import logging
import socket
import threading
import time
from types import TracebackType
from typing import Any, Final

import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from tokentrim.config.specs import StrategySpec
from tokentrim.errors import UnknownNameError, complaint
from tokentrim.loading import Loaded
from tokentrim.serve.transformers.answering import Served
from tokentrim.serve.transformers.handlers import TrimmedChat, error_of

_LOG: Final = logging.getLogger(__name__)
_LOST: Final = 404
_OURS: Final = 500
_PATIENCE: Final = 5  # seconds for answers to break off, each at its next token
_PATHS: Final = "/v1/chat/completions, /v1/models, /health"


def application(served: Served, chat: TrimmedChat) -> Starlette:
    """The web application that answers for a model."""
    since = int(time.time())

    async def completions(request: Request) -> Any:
        try:
            return await chat.answer(request)
        except Exception as cause:
            status, body = error_of(cause)
            if status == _OURS:
                _LOG.exception("a request failed, the next ones are not concerned")
            return JSONResponse(body, _LOST if isinstance(cause, UnknownNameError) else status)

    async def models(request: Request) -> JSONResponse:
        one = {"id": served.name, "object": "model", "created": since, "owned_by": "tokentrim"}
        return JSONResponse({"object": "list", "data": [one]})

    async def health(request: Request) -> JSONResponse:
        return JSONResponse({"status": "ok", "model": served.name, "strategy": served.spec.as_dict()})

    routes = [
        Route("/v1/chat/completions", completions, methods=["POST"]),
        Route("/v1/models", models),
        Route("/health", health),
    ]
    return Starlette(routes=routes, exception_handlers={HTTPException: _elsewhere})


async def _elsewhere(request: Request, cause: Exception) -> JSONResponse:
    """An address or method that is not served."""
    asked = f"{request.method} {request.url.path}"
    said = complaint("a request", f"be for one of {_PATHS}", asked, "other endpoints are not served")
    status: int = getattr(cause, "status_code", _LOST)
    return JSONResponse({"error": {"message": said, "type": "invalid_request_error", "code": None}}, status)


class _Stopping(uvicorn.Server):
    """A web server that breaks off its answers when it is stopped."""

    def __init__(self, chat: TrimmedChat, served: Served) -> None:
        app = application(served, chat)
        super().__init__(uvicorn.Config(app, log_level="warning", lifespan="off", timeout_graceful_shutdown=_PATIENCE))
        self._chat = chat

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """As uvicorn does."""
        self._chat.stop()
        await super().shutdown(sockets)


class Server:
    """A model behind an address: in this thread until it is interrupted, or beside it in a ``with`` block.

    Attributes:
        url: where it answers, such as ``http://127.0.0.1:8000``.
    """

    def __init__(self, name: str, loaded: Loaded, spec: StrategySpec, listening: socket.socket) -> None:
        """Prepare a server.

        Args:
            name: the model as clients name it.
            loaded: model and processor.
            spec: the strategy.
            listening: the socket, from :func:`tokentrim.serve.transformers.listening.listen`.

        Raises:
            TokentrimError: when the strategy cannot serve the model.
        """
        self._socket = listening
        host, port, *_ = listening.getsockname()
        self.url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
        served = Served(name, loaded, spec)
        self._server = _Stopping(TrimmedChat(served), served)
        self._thread: threading.Thread | None = None

    def run(self) -> None:
        """Answer until interrupted."""
        self._server.run(sockets=[self._socket])

    def __enter__(self) -> Server:
        """Answer in a thread of its own from now on."""
        self._thread = threading.Thread(target=self.run, name="tokentrim-serve", daemon=True)
        self._thread.start()
        while not self._server.started and self._thread.is_alive():
            time.sleep(0.01)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop."""
        self._server.should_exit = True
        if self._thread is not None:
            self._thread.join()
        self._socket.close()
