"""Delivery: answers on their way to the client. A slow one keeps its place in the journal and holds up nobody."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from starlette.responses import Response

from moiety.serve.api_error import ApiError, error_body

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine, Sequence

    from starlette.types import Receive, Scope, Send

    from moiety.serve.answer import Form, Json
    from moiety.serve.journal import Entry

Value = TypeVar("Value")


class ClientGoneError(Exception):
    """Nobody waits for the answer any more."""


async def finished(entries: Sequence[Entry], changed: asyncio.Event) -> None:
    """Return when all sequences are over; raise ApiError (500) where one cannot be finished."""
    while not all(each.is_over for each in entries):
        changed.clear()
        await changed.wait()
    for each in entries:
        if each.error is not None:
            raise ApiError(each.error, status=500, kind="server_error")


@dataclass(slots=True)
class Cursor:
    """How much of a journal entry a stream has sent. Tokens that come while the client is slow are sent together."""

    index: int
    """Of the choice."""
    entry: Entry
    num_tokens: int = 0
    num_characters: int = 0
    is_at_end: bool = False

    def advance(self, form: Form) -> Json | None:
        """Return a chunk with what has come since the last one; None where there is nothing to show."""
        tokens = self.entry.accepted[self.num_tokens :]
        if not tokens:
            return None
        text = self.entry.text.text[self.num_characters :] if self.entry.text is not None else ""
        self.num_tokens += len(tokens)
        self.num_characters += len(text)
        self.is_at_end = self.entry.is_over
        if not (text or form.with_token_ids or self.is_at_end):
            return None
        return form.piece(self.index, text, tokens, self.entry.finish_reason)


async def chunks(
    form: Form, entries: Sequence[Entry], changed: asyncio.Event, usage: Callable[[], Json]
) -> AsyncIterator[Json | None]:
    """Yield the chunks of a stream as tokens come; None at its end. An error ends it without that."""
    cursors = [Cursor(index, entry) for index, entry in enumerate(entries)]
    if form.is_chat:
        for each in cursors:
            yield form.begin(each.index)
    while not all(each.is_at_end for each in cursors):
        changed.clear()
        for each in cursors:
            chunk = each.advance(form)
            if chunk is not None:
                yield chunk
            if each.entry.error is not None:
                yield error_body(each.entry.error, "server_error")
                return
        if not all(each.is_at_end for each in cursors):
            await changed.wait()
    if form.with_usage:
        yield form.end(usage())
    yield None


class EventStream(Response):
    """Chunks as server-sent events, until they end or the client is gone; `left` is called in either case."""

    media_type = "text/event-stream"

    def __init__(self, events: AsyncIterator[Json | None], left: Callable[[], None]) -> None:
        super().__init__(headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._events, self._left = events, left

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002 - as ASGI calls it
        """Send the stream."""
        try:
            await unless_gone(self._sent(send), receive)
        except ClientGoneError:
            return
        finally:
            self._left()

    async def _sent(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        async for event in self._events:
            data = "[DONE]" if event is None else json.dumps(event, ensure_ascii=False, separators=(",", ":"))
            body = f"data: {data}\n\n".encode(errors="backslashreplace")
            await send({"type": "http.response.body", "body": body, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def unless_gone(work: Coroutine[object, object, Value], receive: Receive) -> Value:
    """Return what `work` does; raise ClientGoneError, and let it be, where the client goes first."""
    task = asyncio.create_task(work)
    gone = asyncio.create_task(_gone(receive))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientGoneError
        return task.result()
    finally:
        task.cancel()
        gone.cancel()


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
