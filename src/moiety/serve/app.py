"""The HTTP side: which path does what."""

from __future__ import annotations

import asyncio
import hmac
import time
from dataclasses import asdict
from typing import TYPE_CHECKING

from fastapi import FastAPI, Request
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response

from moiety.serve.answer import Form, usage_of
from moiety.serve.api_error import ApiError, error_body
from moiety.serve.body import read_body
from moiety.serve.delivery import ClientGoneError, EventStream, chunks, finished, unless_gone
from moiety.serve.engine_loop import NotServingError
from moiety.serve.request import ChatRequest, CompletionRequest, read_request
from moiety.serve.scheduler import QueueFullError

if TYPE_CHECKING:
    from collections.abc import Callable

    from starlette.types import ASGIApp, Receive, Scope, Send

    from moiety.serve.controller import Controller
    from moiety.serve.engine_loop import EngineLoop
    from moiety.serve.intake import Served
    from moiety.serve.journal import Entry
    from moiety.serve.metrics import Metrics
    from moiety.serve.request import GenerationRequest

_OPEN = frozenset({"/health", "/metrics"})
"""Paths that need no key: probes and scrapers have none."""
_CLIENT_CLOSED_REQUEST = 499
"""What nobody reads any more; nginx' number."""
_NOT_FOUND = 404


def app_of(
    engine: EngineLoop, controller: Controller, served: Served, metrics: Metrics, api_key: str | None
) -> ASGIApp:
    """Return the server's application; with an `api_key` requests must carry it."""
    api = Api(engine, controller, served, metrics)
    app = FastAPI(title="moiety", openapi_url=None, docs_url=None, redoc_url=None, redirect_slashes=False)
    app.add_api_route("/v1/completions", api.completions, methods=["POST"])
    app.add_api_route("/v1/chat/completions", api.chat_completions, methods=["POST"])
    for path, show in (
        ("/v1/models", api.models),
        ("/v1/models/{name:path}", api.model),
        ("/health", api.health),
        ("/ranks", api.ranks),
        ("/metrics", api.prometheus),
    ):
        app.add_api_route(path, show, methods=["GET"])
    for kind, handler in (
        (ApiError, api.refused),
        (HTTPException, api.no_such_path),
        (ClientGoneError, api.client_gone),
        (Exception, api.failed),
    ):
        app.add_exception_handler(kind, handler)
    return app if api_key is None else KeyCheck(app, api_key, metrics.refused)


class Api:
    """What each path answers."""

    def __init__(self, engine: EngineLoop, controller: Controller, served: Served, metrics: Metrics) -> None:
        self._engine, self._controller, self._served, self._metrics = engine, controller, served, metrics
        self._began = int(time.time())

    async def completions(self, request: Request) -> Response:
        """Continue prompts."""
        asked = read_request(CompletionRequest, await read_body(request.receive))
        changed = asyncio.Event()
        return await self._answer(request, asked, await self._served.completion(asked, changed.set), changed)

    async def chat_completions(self, request: Request) -> Response:
        """Answer in a chat."""
        asked = read_request(ChatRequest, await read_body(request.receive))
        changed = asyncio.Event()
        return await self._answer(request, asked, await self._served.chat(asked, changed.set), changed)

    async def _answer(
        self, request: Request, asked: GenerationRequest, entries: list[Entry], changed: asyncio.Event
    ) -> Response:
        engine = self._engine
        _submit(engine, entries)
        form = Form(
            is_chat=isinstance(asked, ChatRequest),
            model=asked.model or self._served.names[0],
            with_token_ids=bool(asked.return_token_ids) or self._served.texts is None,
            with_usage=asked.stream_options is not None and asked.stream_options.include_usage,
        )
        choices = asked.n or 1
        if asked.stream:
            events = chunks(form, entries, changed, lambda: usage_of(entries, choices))
            return EventStream(events, lambda: engine.withdraw(entries))
        try:
            await unless_gone(finished(entries, changed), request.receive)
        finally:
            engine.withdraw(entries)
        return JSONResponse(form.whole(entries, usage_of(entries, choices)))

    async def models(self) -> Response:
        """List the model."""
        return JSONResponse({"object": "list", "data": [self._model(self._served.names[0])]})

    async def model(self, name: str) -> Response:
        """Show the model, by any of its names."""
        self._served.check_name(name)
        return JSONResponse(self._model(name))

    def _model(self, name: str) -> dict[str, object]:
        model = {"id": name, "object": "model", "created": self._began, "owned_by": "moiety"}
        return {**model, "max_model_len": self._served.capacity}

    async def health(self) -> Response:
        """Say whether requests are taken: 200, or 503; and what clock or power was chosen, and whether it is set."""
        takes_requests = self._engine.state in {"ready", "recovering"}
        limit = self._controller.clocks.document()
        found = {"status": self._engine.state, "epoch": self._controller.epoch, "limit": limit}
        return JSONResponse(found, 200 if takes_requests else 503)

    async def ranks(self) -> Response:
        """Say which ranks there are."""
        ranks = [asdict(each) for each in self._engine.ranks()]
        return JSONResponse({"epoch": self._controller.epoch, "ranks": ranks, "control": self._controller.summary()})

    async def prometheus(self) -> Response:
        """Return the metrics."""
        text = self._metrics.text() + self._controller.metrics_text().encode()
        return Response(text, media_type=CONTENT_TYPE_LATEST)

    async def refused(self, _: Request, error: Exception) -> Response:
        """Answer a request that cannot be done."""
        assert isinstance(error, ApiError), "it is registered for these"
        self._metrics.refused(error.status)
        return JSONResponse(error.body(), error.status, error.headers())

    async def no_such_path(self, request: Request, error: Exception) -> Response:
        """Answer a request for what there is not."""
        assert isinstance(error, HTTPException), "it is registered for these"
        self._metrics.refused(error.status_code)
        message = f"{request.method} {request.url.path[:200]}: {error.detail}"
        kind = "not_found_error" if error.status_code == _NOT_FOUND else "invalid_request_error"
        return JSONResponse(error_body(message, kind), error.status_code, error.headers)

    async def client_gone(self, _: Request, __: Exception) -> Response:
        """Answer where nobody listens."""
        return Response(status_code=_CLIENT_CLOSED_REQUEST)

    async def failed(self, _: Request, __: Exception) -> Response:
        """Answer where an error of ours is in the way."""
        return JSONResponse(error_body("the server failed to handle the request", "server_error"), 500)


def _submit(engine: EngineLoop, entries: list[Entry]) -> None:
    """Hand the sequences over; raise ApiError where there is no room (429) or no service (503)."""
    try:
        engine.submit(entries)
    except QueueFullError:
        message = "too many requests are waiting; come again later"
        raise ApiError(message, status=429, kind="rate_limit_error", code="queue_full") from None
    except NotServingError as error:
        raise ApiError(str(error), status=503, kind="overloaded_error", code="not_serving") from None


class KeyCheck:
    """Lets through what carries the key as a bearer token; the rest is told so (401)."""

    def __init__(self, app: ASGIApp, api_key: str, refused: Callable[[int], None]) -> None:
        self._app, self._expected, self._refused = app, api_key.encode(), refused

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Check one request."""
        if scope["type"] == "http" and scope["path"] not in _OPEN:
            given = next((value for name, value in scope["headers"] if name == b"authorization"), b"")
            scheme, _, key = given.partition(b" ")
            if scheme.lower() != b"bearer" or not hmac.compare_digest(key.strip(), self._expected):
                message = "no API key, or a wrong one: send Authorization: Bearer KEY"
                error = ApiError(message, status=401, kind="authentication_error", code="invalid_api_key")
                self._refused(error.status)
                await JSONResponse(error.body(), error.status, error.headers())(scope, receive, send)
                return
        await self._app(scope, receive, send)
