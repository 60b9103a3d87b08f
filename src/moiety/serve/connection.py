"""Connections: HTTP/1.1 as uvicorn speaks it, and an end to clients that neither ask nor take."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, ClassVar

from uvicorn.protocols.http.h11_impl import H11Protocol

if TYPE_CHECKING:
    import asyncio


class Connection(H11Protocol):
    """One client's connection; uvicorn would wait for ever for a request to begin, and for an answer to be taken."""

    head_s: ClassVar[float] = 10.0
    """How long the head of a request may take, from the connection or the first byte on."""
    unread_s: ClassVar[float] = 60.0
    """How long a client may take nothing of what there is for it."""
    _head: asyncio.TimerHandle | None = None
    _unread: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for a request; what is written is sent at once, not when the client has acknowledged the last.

        asyncio sees to that only where a socket names its protocol, which those that come of `create_server` do not.
        """
        super().connection_made(transport)
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        transport.set_write_buffer_limits(high=0)  # paused is then: something waits to be taken
        self._await_head()

    def data_received(self, data: bytes) -> None:
        """Take bytes in; a head that comes in drips has no more time for that."""
        super().data_received(data)
        has_request = self.cycle is not None and not self.cycle.response_complete  # pyright: ignore[reportUnnecessaryComparison] - None until the first
        if not has_request:
            self._await_head()
        elif self._head is not None:
            self._head.cancel()
            self._head = None

    def pause_writing(self) -> None:
        """Wait for the client to take what there is."""
        super().pause_writing()
        self._unread = self.loop.call_later(self.unread_s, self.transport.abort)

    def resume_writing(self) -> None:
        """Take note that it has."""
        super().resume_writing()
        if self._unread is not None:
            self._unread.cancel()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget it."""
        for each in (self._head, self._unread):
            if each is not None:
                each.cancel()
        super().connection_lost(exc)

    def _await_head(self) -> None:
        if self._head is None:
            self._head = self.loop.call_later(self.head_s, self.transport.abort)
