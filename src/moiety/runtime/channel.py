"""Channel: JSON lines between a rank and its launcher, over an inherited socket, both ways."""

from __future__ import annotations

import json
import socket
import threading
from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

Message = dict[str, object]

_READ_BYTES = 1 << 16


class Channel:
    """A rank's end. Any thread may say something; one listens."""

    def __init__(self, descriptor: int) -> None:
        """Take over the descriptor of a connected socket."""
        self._socket = socket.socket(fileno=descriptor)
        self._socket.set_inheritable(False)
        self._lock = threading.Lock()

    def say(self, message: Mapping[str, object]) -> None:
        """Send a message, whole; BrokenPipeError where the launcher is gone."""
        line = json.dumps(message, allow_nan=False).encode() + b"\n"
        with self._lock:
            self._socket.sendall(line)

    def heard(self) -> Iterator[Message]:
        """Yield what the launcher says, as it comes, until it is gone."""
        unread = b""
        while True:
            try:
                data = self._socket.recv(_READ_BYTES)
            except ConnectionError:
                return
            if not data:
                return
            *lines, unread = (unread + data).split(b"\n")
            for line in lines:
                yield message_of(line)


def message_of(line: bytes) -> Message:
    """Return the message that a line holds."""
    return cast("Message", json.loads(line))
