"""BulkTransfer: one tensor on its way in chunks, from a link or from memory, to a link or to memory."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from moiety.runtime.comm.chunk_link import ChunkLink
    from moiety.runtime.comm.priority import Priority


class BulkTransfer:
    """Bytes that come over `source`, or lie here where it is None, and go over `target`, or stay here."""

    def __init__(
        self,
        priority: Priority,
        data: memoryview,
        source: ChunkLink | None,
        target: ChunkLink | None,
        *,
        on_end: Callable[[float], None] | None = None,
        keep: object = None,
    ) -> None:
        self.priority = priority
        self.data = data
        self.source = source
        self.target = target
        self.on_end = on_end
        self.keep = keep
        """Owner of the memory of `data`."""
        self.source_number = source.next_received() if source else 0
        self.target_number = target.next_sent() if target else 0
        self.here_bytes = 0 if source else data.nbytes
        """Bytes that lie here."""
        self.sent_bytes = 0
        self.is_confirmed = True
        """Whether the peer has all that was sent."""
        self.owes_confirmation = False
        """Whether a chunk has come whose sender has not been told."""
        self.ended = threading.Event()
        self.failure: str | None = None

    @property
    def has_chunk(self) -> bool:
        """Whether a chunk may go out as far as this transfer is concerned."""
        return self.target is not None and self.is_confirmed and self.sent_bytes < self.here_bytes

    @property
    def is_here(self) -> bool:
        """Whether nothing is to come any more."""
        return self.here_bytes == self.data.nbytes

    @property
    def has_left(self) -> bool:
        """Whether nothing is to go any more."""
        return self.target is None or (self.is_confirmed and self.sent_bytes == self.data.nbytes)

    @property
    def is_whole(self) -> bool:
        """Whether everything is where it belongs, and everybody knows."""
        return self.is_here and self.has_left and not self.owes_confirmation

    @property
    def peer(self) -> int | None:
        """Rank that is waited for."""
        link = self.target if self.is_here else self.source
        return None if link is None else link.rank

    def needs(self, link: ChunkLink) -> bool:
        """Return whether something of it is still to come or to go over `link`."""
        return (link is self.source and not self.is_here) or (link is self.target and not self.has_left)

    def next_chunk(self, chunk_bytes: int) -> memoryview:
        """Return the next bytes to send, at most `chunk_bytes`, and count them as sent."""
        chunk = self.data[self.sent_bytes : min(self.sent_bytes + chunk_bytes, self.here_bytes)]
        self.sent_bytes += chunk.nbytes
        self.is_confirmed = False
        return chunk

    def room(self, size_bytes: int) -> memoryview:
        """Return where the next `size_bytes` that come belong."""
        assert self.here_bytes + size_bytes <= self.data.nbytes, f"a tensor of {self.data.nbytes} bytes is sent more"
        return self.data[self.here_bytes : self.here_bytes + size_bytes]

    def take_in(self, size_bytes: int) -> None:
        """Count bytes that have come."""
        self.here_bytes += size_bytes
        self.owes_confirmation = True

    def end(self, end_s: float, failure: str | None) -> None:
        """Let whoever waits go on."""
        self.failure = failure
        if failure is None and self.on_end is not None:
            self.on_end(end_s)
        self.ended.set()
