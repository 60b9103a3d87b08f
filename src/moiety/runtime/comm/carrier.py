"""Carrier: which chunk of which bulk transfer goes next, and where the chunks that come belong."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from moiety.runtime.comm.bulk_transfer import BulkTransfer
    from moiety.runtime.comm.chunk_link import ChunkLink


class Carrier:
    """The bulk transfers of a rank: one chunk of them is on its way out at a time, of the most urgent class first.

    It has no thread and no lock: whoever uses it brings both.
    """

    def __init__(self, chunk_bytes: int) -> None:
        self.links: dict[int, ChunkLink] = {}
        """The open ones, by descriptor."""
        self.last_progress_s = 0.0
        self._chunk_bytes = chunk_bytes
        self._transfers: list[BulkTransfer] = []
        """In the order in which they go: by class, then as they came."""
        self._early: dict[tuple[ChunkLink, int], memoryview] = {}
        """First chunks of transfers that had not been added when they came, whole or not."""
        self._early_whole: set[tuple[ChunkLink, int]] = set()
        self._last: BulkTransfer | None = None
        """The one that has sent a chunk last."""

    @property
    def may_go_on(self) -> bool:
        """Whether there is something to confirm, or to send once the last chunk has arrived."""
        return any(each.has_chunk or each.owes_confirmation for each in self._transfers)

    def add(self, transfer: BulkTransfer) -> None:
        """Take a transfer on."""
        for link in (transfer.source, transfer.target):
            if link is not None and link.failure is not None:
                transfer.end(time.perf_counter(), link.failure)
                return
        place = sum(other.priority <= transfer.priority for other in self._transfers)
        self._transfers.insert(place, transfer)
        if transfer.source is not None and (transfer.source, transfer.source_number) in self._early_whole:
            self._early_whole.discard((transfer.source, transfer.source_number))
            early = self._early.pop((transfer.source, transfer.source_number))
            transfer.room(early.nbytes)[:] = early
            transfer.take_in(early.nbytes)
        self._settle(transfer)

    def go_on(self) -> None:
        """Confirm what has come, and send the most urgent chunk if none is on its way."""
        for transfer in tuple(self._transfers):
            if transfer.owes_confirmation:
                self._confirm(transfer)
        while not self._has_chunk_under_way:
            transfer = next((each for each in self._transfers if each.has_chunk), None)
            if transfer is None:
                return
            assert transfer.target is not None
            self._last = transfer
            transfer.target.send_chunk(transfer.target_number, transfer.next_chunk(self._chunk_bytes))
            self._drop_if_failed(transfer.target)

    def move(self, link: ChunkLink) -> None:
        """Send and receive on a link what the kernel takes and has."""
        self.last_progress_s = time.perf_counter()
        link.push()
        link.pull(self)
        self._drop_if_failed(link)

    def room_for(self, link: ChunkLink, number: int, size_bytes: int) -> memoryview:
        """Return where the next chunk of transfer `number` of `link` belongs."""
        transfer = self._coming(link, number)
        if transfer is not None:
            return transfer.room(size_bytes)
        early = self._early[link, number] = memoryview(bytearray(size_bytes))
        return early

    def chunk_came(self, link: ChunkLink, number: int, size_bytes: int) -> None:
        """Take note of a chunk that lies where it belongs; the last one of a transfer is confirmed at once."""
        transfer = self._coming(link, number)
        if transfer is None:
            self._early_whole.add((link, number))
            return
        early = self._early.pop((link, number), None)
        if early is not None:  # the transfer was added while the chunk was coming
            transfer.room(size_bytes)[:] = early
        transfer.take_in(size_bytes)
        self._settle(transfer)

    def confirmation_came(self, link: ChunkLink, number: int) -> None:
        """Take note that the peer has the chunk of transfer `number` that was sent last."""
        for transfer in self._transfers:
            if transfer.target is link and transfer.target_number == number:
                transfer.is_confirmed = True
                self._settle(transfer)
                return

    @property
    def _has_chunk_under_way(self) -> bool:
        # A receiver that has not begun yet does not confirm, but its kernel does, when it has the chunk.
        last = self._last
        return last is not None and not last.is_confirmed and last.target is not None and last.target.is_draining

    def _coming(self, link: ChunkLink, number: int) -> BulkTransfer | None:
        for transfer in self._transfers:
            if transfer.source is link and transfer.source_number == number:
                return transfer
        return None

    def _confirm(self, transfer: BulkTransfer) -> None:
        assert transfer.source is not None
        transfer.owes_confirmation = False
        transfer.source.confirm(transfer.source_number)
        self._settle(transfer)
        self._drop_if_failed(transfer.source)

    def _settle(self, transfer: BulkTransfer) -> None:
        if transfer.owes_confirmation and transfer.is_here:
            self._confirm(transfer)
        elif transfer.is_whole and transfer in self._transfers:
            self._transfers.remove(transfer)
            transfer.end(time.perf_counter(), None)

    def _drop_if_failed(self, link: ChunkLink) -> None:
        if link.failure is None or link.descriptor not in self.links:
            return
        del self.links[link.descriptor]
        for transfer in tuple(self._transfers):
            if transfer.needs(link):
                self._transfers.remove(transfer)
                transfer.end(time.perf_counter(), link.failure)
