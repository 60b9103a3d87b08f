"""ChunkLink: a link that carries chunks of several bulk transfers by turns, each chunk confirmed by its receiver."""

from __future__ import annotations

import struct
from collections import deque
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from moiety.runtime.comm.link import Link

_FRAME = struct.Struct("<?IQ")
"""Whether it is a confirmation, the number of the transfer on this link in its direction, bytes of the chunk."""


class Arrivals(Protocol):
    """What a chunk link tells of what comes."""

    def room_for(self, link: ChunkLink, number: int, size_bytes: int) -> memoryview:
        """Return where the next chunk of transfer `number` belongs."""
        ...

    def chunk_came(self, link: ChunkLink, number: int, size_bytes: int) -> None:
        """Take note of a chunk that lies there."""
        ...

    def confirmation_came(self, link: ChunkLink, number: int) -> None:
        """Take note that the peer has the chunk of transfer `number` that was sent last."""
        ...


class ChunkLink:
    """The frames that wait for the kernel, and the frame that is coming in; `failure` says why there are no more."""

    def __init__(self, link: Link) -> None:
        self.socket = link.socket
        self.descriptor = link.socket.fileno()
        self.rank = link.rank
        self.failure: str | None = None
        self._link = link
        self._num_sent = 0
        self._num_received = 0
        self._outgoing: deque[memoryview] = deque()
        self._header = memoryview(bytearray(_FRAME.size))
        self._header_bytes = 0
        """Of the header that is coming in."""
        self._number = 0
        self._size_bytes = 0
        self._room = memoryview(bytearray())
        """For what is still to come of the chunk."""

    def next_sent(self) -> int:
        """Return the number of the next transfer to the peer."""
        self._num_sent += 1
        return self._num_sent

    def next_received(self) -> int:
        """Return the number of the next transfer from the peer."""
        self._num_received += 1
        return self._num_received

    @property
    def is_stuck(self) -> bool:
        """Whether the kernel has not taken everything yet."""
        return bool(self._outgoing) and self.failure is None

    @property
    def is_draining(self) -> bool:
        """Whether bytes have not reached the peer's kernel yet."""
        return self.failure is None and (bool(self._outgoing) or self._link.num_unconfirmed_bytes > 0)

    def send_chunk(self, number: int, chunk: memoryview) -> None:
        """Send a chunk of transfer `number`."""
        self._outgoing += (memoryview(_FRAME.pack(False, number, chunk.nbytes)), chunk)  # noqa: FBT003  # a field
        self.push()

    def confirm(self, number: int) -> None:
        """Tell the peer that the chunk of transfer `number` has come."""
        self._outgoing.append(memoryview(_FRAME.pack(True, number, 0)))  # noqa: FBT003  # a field
        self.push()

    def push(self) -> None:
        """Send what the kernel takes."""
        outgoing = self._outgoing
        try:
            while outgoing:
                sent_bytes = self.socket.sendmsg(outgoing)
                while outgoing and sent_bytes >= outgoing[0].nbytes:
                    sent_bytes -= outgoing.popleft().nbytes
                if sent_bytes:
                    outgoing[0] = outgoing[0][sent_bytes:]
        except BlockingIOError:
            return
        except OSError as error:
            self.failure = self.failure or error.strerror or str(error)

    def pull(self, arrivals: Arrivals) -> None:
        """Receive what the kernel has."""
        try:
            while self._pull_some(arrivals):
                pass
        except BlockingIOError:
            return
        except OSError as error:
            self.failure = self.failure or error.strerror or str(error)

    def _pull_some(self, arrivals: Arrivals) -> bool:
        if self._header_bytes < _FRAME.size:
            come_bytes = self.socket.recv_into(self._header[self._header_bytes :])
            self._header_bytes += come_bytes
            if self._header_bytes == _FRAME.size:
                is_confirmation, self._number, self._size_bytes = _FRAME.unpack(self._header)
                if is_confirmation:
                    self._header_bytes = 0
                    arrivals.confirmation_came(self, self._number)
                else:
                    self._room = arrivals.room_for(self, self._number, self._size_bytes)
        else:
            come_bytes = self.socket.recv_into(self._room)
            self._room = self._room[come_bytes:]
            if not self._room.nbytes:
                self._header_bytes = 0
                arrivals.chunk_came(self, self._number, self._size_bytes)
        if not come_bytes:
            self.failure = self.failure or "closed its connection"
        return come_bytes > 0
