"""Clients that neither ask nor take: each is let go in time, and others are served meanwhile."""

from __future__ import annotations

import asyncio
import socket
import threading
from contextlib import closing
from typing import TYPE_CHECKING, Any

import pytest

pytest.importorskip("fastapi", reason="serving is an extra")

import httpx
import uvicorn

from moiety.serve.connection import Connection
from moiety.serve.delivery import EventStream
from moiety.serve.server import listening_on
from tests.serve.servers import awaited

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator


class Impatient(Connection):
    """As the server's, with less patience than a test has."""

    head_s = 0.3
    unread_s = 0.3


class Site:
    """A server of two paths: a word, and a stream without end."""

    def __init__(self, listener: socket.socket) -> None:
        self.address: tuple[str, int] = listener.getsockname()
        self.num_left = 0
        """Streams whose clients are gone."""
        config = uvicorn.Config(self.answer, http=Impatient, interface="asgi3", lifespan="off", log_config=None)
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=asyncio.run, args=(self._server.serve([listener]),), daemon=True)
        self._thread.start()

    async def answer(self, scope: Any, receive: Any, send: Any) -> None:  # noqa: ANN401 - as ASGI has it
        if scope["path"] == "/stream":
            await EventStream(self.endless(), self.left)(scope, receive, send)
            return
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"4")]})
        await send({"type": "http.response.body", "body": b"word"})

    async def endless(self) -> AsyncIterator[dict[str, object]]:
        while True:
            await asyncio.sleep(0)
            yield {"text": "x" * 100_000}

    def left(self) -> None:
        self.num_left += 1

    @property
    def connections(self) -> list[Any]:
        return [*self._server.server_state.connections]

    def word(self) -> str:
        return httpx.get("http://{}:{}/".format(*self.address)).text

    def close(self) -> None:
        self._server.should_exit = True
        self._thread.join()


@pytest.fixture
def site() -> Iterator[Site]:
    with listening_on("127.0.0.1", 0) as listener, closing(Site(listener)) as running:
        yield running


def is_closed(connection: socket.socket) -> bool:
    """Wait for the other end to close; return whether it has."""
    connection.settimeout(30.0)
    try:
        while connection.recv(4096):
            pass
    except ConnectionError:
        return True
    except TimeoutError:
        return False
    return True


def test_what_is_written_does_not_wait_for_the_client_to_acknowledge_the_last(site: Site) -> None:
    """Small writes, as a token is, would wait for as long as clients put off acknowledging: 40 ms on Linux."""
    with socket.create_connection(site.address):
        awaited(lambda: len(site.connections) == 1)
        (connection,) = site.connections
        sends = connection.transport.get_extra_info("socket")
        assert sends.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


@pytest.mark.parametrize("begin", [b"", b"GET / HT", b"GET / HTTP/1.1\r\nHost: x\r\nX-Drip: "])
def test_who_does_not_come_to_ask_is_let_go(site: Site, begin: bytes) -> None:
    with socket.create_connection(site.address) as slow:
        slow.sendall(begin)
        assert site.word() == "word"
        assert is_closed(slow)


def test_a_head_in_drips_has_no_more_time(site: Site) -> None:
    stop = threading.Event()
    with socket.create_connection(site.address) as slow:
        slow.sendall(
            b"GET / HTTP/1.1\r\nHost: x\r\n\r\nGET / HTTP/1.1\r\nX: "
        )  # the second on a connection that is kept

        def drip() -> None:
            while not stop.wait(0.05):
                try:
                    slow.sendall(b"x")
                except OSError:
                    return

        dripping = threading.Thread(target=drip)
        dripping.start()
        assert is_closed(slow)
        stop.set()
        dripping.join()
    assert site.word() == "word"


def test_who_takes_nothing_is_let_go_and_its_stream_ended(site: Site) -> None:
    with socket.create_connection(site.address) as silent:
        silent.sendall(b"GET /stream HTTP/1.1\r\nHost: x\r\n\r\n")
        assert site.word() == "word"
        awaited(lambda: site.num_left == 1)
        awaited(lambda: not site.connections)


def test_who_takes_slowly_is_not(site: Site) -> None:
    with socket.create_connection(site.address) as slow:
        slow.sendall(b"GET /stream HTTP/1.1\r\nHost: x\r\n\r\n")
        slow.settimeout(30.0)
        for _ in range(200):
            assert slow.recv(1 << 20)
        assert site.num_left == 0
    awaited(lambda: site.num_left == 1)
