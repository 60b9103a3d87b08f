"""Link: the connection of one group from this rank to one peer, and the messages under way on it."""

from __future__ import annotations

import fcntl
import select
import socket
import struct
import sys
import termios
import time
from collections import deque

_LENGTH = struct.Struct("<Q")
_HEADER_BYTES = _LENGTH.size
_INT = struct.Struct("i")
_SIOCOUTQNSD = 0x894B
_SO_TIMESTAMPNS = 35
_TIMESPEC = struct.Struct("qq")
_ANCILLARY_BYTES = 64
_MOST_AWAITED_BYTES = 4 << 20
"""What may gather in the kernel before anybody is woken for it: then a large message costs few wake-ups."""


class Operation:
    """Messages to and from several peers that end together."""

    __slots__ = ("has_begun", "num_left")

    def __init__(self) -> None:
        self.num_left = 0
        """Of its messages."""
        self.has_begun = False
        """Whether bytes of it are on the way: it has something to send, or something has come."""


class Message:
    """Bytes of one operation to or from one peer: their length, then the payload."""

    __slots__ = ("moved_bytes", "operation", "payload")

    def __init__(self, operation: Operation, payload: memoryview) -> None:
        self.operation = operation
        self.payload = payload
        self.moved_bytes = 0
        """Of the length and the payload together."""


class Closed(Exception):  # noqa: N818  # becomes PeerLost where the group's name is known
    """The other end is gone."""


def _seen_s(ancillary: list[tuple[int, int, bytes]]) -> float:
    # The kernel's stamp is wall time; what has passed since then is as long by either clock.
    seconds, nanoseconds = _TIMESPEC.unpack(ancillary[0][2])
    passed_ns = time.time_ns() - seconds * 1_000_000_000 - nanoseconds
    return time.perf_counter() - max(0, passed_ns) * 1e-9


class Link:
    """A connected socket with the messages to send and the messages to receive, each in order."""

    __slots__ = (
        "_ancillary_bytes",
        "_awaited_bytes",
        "_header",
        "arrived_s",
        "inbox",
        "outbox",
        "rank",
        "readable",
        "socket",
    )

    def __init__(self, connection: socket.socket, rank: int, *, is_timed: bool = False) -> None:
        connection.setblocking(False)  # noqa: FBT003  # the standard library's signature
        self._ancillary_bytes = 0
        if is_timed and sys.platform == "linux":
            connection.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)
            self._ancillary_bytes = _ANCILLARY_BYTES
        self.socket = connection
        self.rank = rank
        self.outbox: deque[Message] = deque()
        self.inbox: deque[Message] = deque()
        self.readable = select.poll()
        self.readable.register(connection, select.POLLIN)
        self._header = memoryview(bytearray(_HEADER_BYTES))
        """The length of the message that stands first in the inbox."""
        self._awaited_bytes = 1
        """What must have come before a poll finds the socket readable."""
        self.arrived_s = 0.0
        """When what was pulled last had come; on a link that is timed, as the kernel saw it."""

    @property
    def num_unsent_bytes(self) -> int:
        """Bytes that the kernel took and has not sent yet; 0 where the kernel does not say."""
        return self._ask_kernel(_SIOCOUTQNSD) if sys.platform == "linux" else 0

    @property
    def num_unconfirmed_bytes(self) -> int:
        """Bytes that the kernel took and the peer's kernel has not confirmed."""
        return self._ask_kernel(termios.TIOCOUTQ)

    def _ask_kernel(self, request: int) -> int:
        (num_bytes,) = _INT.unpack(fcntl.ioctl(self.socket, request, bytes(_INT.size)))
        return num_bytes

    def push(self) -> Operation | None:
        """Send of the first message what the kernel takes; return its operation if nothing of it is left."""
        message = self.outbox[0]
        payload, moved_bytes = message.payload, message.moved_bytes
        try:
            if moved_bytes >= _HEADER_BYTES:
                moved_bytes += self.socket.send(payload[moved_bytes - _HEADER_BYTES :])
            else:
                header = _LENGTH.pack(payload.nbytes)
                moved_bytes += self.socket.sendmsg((header[moved_bytes:], payload))
        except BlockingIOError:
            return None
        except OSError as error:
            raise Closed(error.strerror or str(error)) from error
        message.moved_bytes = moved_bytes
        if moved_bytes < _HEADER_BYTES + payload.nbytes:
            return None
        self.outbox.popleft()
        return message.operation

    def pull(self) -> Operation | None:
        """Receive of the first message what the kernel has; return its operation if nothing of it is left."""
        message = self.inbox[0]
        payload, moved_bytes = message.payload, message.moved_bytes
        try:
            if moved_bytes >= _HEADER_BYTES:
                come_bytes = self.socket.recv_into(payload[moved_bytes - _HEADER_BYTES :])
                self.arrived_s = time.perf_counter()
            else:
                room = (self._header[moved_bytes:], payload)
                come_bytes, ancillary, _, _ = self.socket.recvmsg_into(room, self._ancillary_bytes)
                self.arrived_s = _seen_s(ancillary) if ancillary else time.perf_counter()
        except BlockingIOError:
            return None
        except OSError as error:
            raise Closed(error.strerror or str(error)) from error
        if not come_bytes:
            raise Closed("closed its connection")
        message.operation.has_begun = True
        message.moved_bytes += come_bytes
        if moved_bytes < _HEADER_BYTES <= message.moved_bytes:
            (announced_bytes,) = _LENGTH.unpack(self._header)
            assert announced_bytes == payload.nbytes, (
                f"rank {self.rank} sends {announced_bytes} bytes where {payload.nbytes} are expected"
            )
        missing_bytes = _HEADER_BYTES + payload.nbytes - message.moved_bytes
        if missing_bytes:
            self._await(missing_bytes if message.moved_bytes >= _HEADER_BYTES else 1)
            return None
        self._await(1)
        self.inbox.popleft()
        return message.operation

    def _await(self, num_bytes: int) -> None:
        """Have the kernel report the socket as readable when so many bytes have come, or the end of them."""
        awaited = min(num_bytes, _MOST_AWAITED_BYTES)
        if awaited != self._awaited_bytes and sys.platform == "linux":
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, awaited)
            self._awaited_bytes = awaited
