"""Waker: how one thread rouses another that sleeps in `poll`."""

from __future__ import annotations

import socket
from contextlib import suppress


class Waker:
    """A pair of sockets; the sleeping thread polls `descriptor` for input."""

    def __init__(self) -> None:
        self._sender, self._receiver = socket.socketpair()
        self._sender.setblocking(False)  # noqa: FBT003  # the standard library's signature
        self._receiver.setblocking(False)  # noqa: FBT003  # likewise
        self.descriptor = self._receiver.fileno()

    def rouse(self) -> None:
        """Let the other thread's poll return."""
        with suppress(BlockingIOError):  # full: it is awake already
            self._sender.send(b"!")

    def clear(self) -> None:
        """Take note of having been roused, in the thread that was."""
        with suppress(BlockingIOError):
            self._receiver.recv(4096)

    def close(self) -> None:
        """Close the pair, when neither thread uses it any more."""
        self._sender.close()
        self._receiver.close()
