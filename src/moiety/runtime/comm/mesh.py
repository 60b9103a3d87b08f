"""Mesh: the links of one group, and the transfers that are under way on them."""

from __future__ import annotations

import select
import time
from threading import RLock
from typing import TYPE_CHECKING

from moiety.runtime.comm.link import Closed, Message, Operation
from moiety.runtime.comm.peer_lost import PeerLost
from moiety.runtime.comm.watch import SLICE_S

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from moiety.runtime.comm.link import Link
    from moiety.runtime.comm.watch import Watch

Part = tuple[int, memoryview]
"""A member of the group, by its place there, and bytes that go to it or come from it."""

SMALL_BYTES = 65_536
"""What a kernel surely buffers of one message, so that it arrives without anybody's help."""


class Transfer(Operation):
    """An operation of a mesh, with what is to happen when it ends."""

    __slots__ = ("end_s", "is_small", "keep", "last_s", "on_end")

    def __init__(self, on_end: Callable[[float], None] | None, keep: object) -> None:
        super().__init__()
        self.on_end = on_end
        self.keep = keep
        """Owner of the memory that is read and written."""
        self.last_s = time.perf_counter()
        """When its last message so far had gone or come."""
        self.end_s: float | None = None
        self.is_small = True
        """Whether everything that comes is small."""


class Mesh:
    """Links to the other members of a group, by their places. Any thread may start transfers and wait for them."""

    def __init__(self, label: str, links: dict[int, Link], watch: Watch, help_wanted: Callable[[Mesh], None]) -> None:
        self.label = label
        self.links = links
        self.lock = RLock()
        self.num_waiters = 0
        """Threads that move this mesh's bytes themselves; the progress thread leaves them alone."""
        self._watch = watch
        self._help_wanted = help_wanted
        self._transfers: set[Transfer] = set()
        self._last_progress_s = 0.0
        self._failure: tuple[str, int] | None = None
        self._bug: AssertionError | None = None

    @property
    def has_failed(self) -> bool:
        """Whether a peer is gone, so that nothing will move any more."""
        return self._failure is not None or self._bug is not None

    def is_moving(self) -> bool:
        """Return whether bytes are on the way: a transfer that sends, or a receipt that has begun.

        What has come meanwhile is taken in first, as nobody may be waiting for it yet. What has not moved until the
        deadline does not move.
        """
        if self._transfers and not self.num_waiters and self.lock.acquire(blocking=False):
            try:
                self.advance(self.poll_list(), 0.0)
            finally:
                self.lock.release()
        if self.has_failed or time.perf_counter() - self._last_progress_s > self._watch.timeout_s:
            return False
        return any(transfer.has_begun for transfer in tuple(self._transfers))

    @property
    def is_draining(self) -> bool:
        """Whether bytes of transfers, ended ones too, still wait in this rank's kernel."""
        return any(link.num_unsent_bytes for link in self.links.values())

    def start(
        self,
        outgoing: Sequence[Part],
        incoming: Sequence[Part],
        *,
        on_end: Callable[[float], None] | None = None,
        keep: object = None,
        is_background: bool = False,
    ) -> Transfer:
        """Begin to send and to receive; `is_background` when the caller computes before it waits."""
        transfer = Transfer(on_end, keep)
        links = self.links
        is_stuck = False
        with self.lock:
            transfer.num_left = len(outgoing) + len(incoming)
            if not transfer.num_left:
                self._end(transfer)
                return transfer
            transfer.has_begun = bool(outgoing)
            self._transfers.add(transfer)
            self._last_progress_s = transfer.last_s
            for index, payload in incoming:
                links[index].inbox.append(Message(transfer, payload))
                if payload.nbytes > SMALL_BYTES:
                    transfer.is_small = False
            for index, payload in outgoing:
                link = links[index]
                link.outbox.append(Message(transfer, payload))
                if len(link.outbox) == 1:
                    self._push(link)
                is_stuck = is_stuck or bool(link.outbox)
        if is_background and transfer.end_s is None and (is_stuck or not transfer.is_small):
            self._help_wanted(self)
        return transfer

    def wait(self, transfer: Transfer) -> float:
        """Move bytes until the transfer has ended; return when that was, by the kernel. PeerLost if it cannot."""
        if transfer.end_s is not None:
            return transfer.end_s
        begin_s = time.perf_counter()
        with self.lock:
            self.num_waiters += 1
        try:
            if transfer.is_small:
                self._wait_in_order(transfer, begin_s)
            while transfer.end_s is None:
                self.check(begin_s)
                self.advance(self.poll_list(), SLICE_S)
        finally:
            with self.lock:
                self.num_waiters -= 1
                has_more = bool(self._transfers)
            if has_more:
                self._help_wanted(self)
        return transfer.end_s

    def _wait_in_order(self, transfer: Transfer, begin_s: float) -> None:
        # One wake-up in place of one for every peer: while this waits for the first, the kernel takes in the others'.
        for link in self.links.values():
            while link.inbox and link.inbox[0].operation is transfer and not link.outbox:
                if link.readable.poll(SLICE_S * 1000):
                    with self.lock:
                        self._pull(link)
                self.check(begin_s, link)

    def is_done(self, transfer: Transfer) -> bool:
        """Move what moves without waiting; return whether the transfer has ended."""
        if transfer.end_s is None:
            self.check(time.perf_counter())
            self.advance(self.poll_list(), 0.0)
        return transfer.end_s is not None

    def poll_list(self) -> list[tuple[Link, int]]:
        """Return the links that wait for something, with the events they wait for."""
        return [
            (link, (select.POLLIN if link.inbox else 0) | (select.POLLOUT if link.outbox else 0))
            for link in self.links.values()
            if link.inbox or link.outbox
        ]

    def advance(self, links: list[tuple[Link, int]], timeout_s: float) -> None:
        """Wait until one of the links is ready, then move what the kernel takes and has."""
        poll = select.poll()
        by_descriptor: dict[int, Link] = {}
        for link, events in links:
            by_descriptor[link.socket.fileno()] = link
            poll.register(link.socket, events)
        ready = poll.poll(timeout_s * 1000)
        with self.lock:
            for descriptor, events in ready:
                self.move(by_descriptor[descriptor], events)

    def move_for_others(self, link: Link, events: int) -> None:
        """Move what a poll found ready, unless a thread of the mesh's own is at it."""
        if self.lock.acquire(blocking=False):
            try:
                if not self.num_waiters:
                    self.move(link, events)
            finally:
                self.lock.release()

    def move(self, link: Link, events: int) -> None:
        """Send and receive on a link what the kernel takes and has; the caller holds the lock."""
        if link.outbox and events & ~select.POLLIN:
            self._push(link)
        if link.inbox and events & ~select.POLLOUT:
            self._pull(link)

    def _push(self, link: Link) -> None:
        try:
            operation = link.push()
        except Closed as closed:
            self._failure = self._failure or (str(closed), link.rank)
            return
        self._last_progress_s = time.perf_counter()
        if operation is not None:
            self._finish(operation, self._last_progress_s)

    def _pull(self, link: Link) -> None:
        try:
            operation = link.pull()
        except Closed as closed:
            self._failure = self._failure or (str(closed), link.rank)
            return
        except AssertionError as error:  # in whichever thread it is seen: the one that waits shall raise it
            self._bug = error
            return
        self._last_progress_s = time.perf_counter()
        if operation is not None:
            self._finish(operation, link.arrived_s)

    def _finish(self, operation: Operation, at_s: float) -> None:
        assert isinstance(operation, Transfer)
        operation.num_left -= 1
        operation.last_s = max(operation.last_s, at_s)
        if not operation.num_left:
            self._end(operation)

    def _end(self, transfer: Transfer) -> None:
        self._transfers.discard(transfer)
        transfer.end_s = transfer.last_s
        if transfer.on_end is not None:
            transfer.on_end(transfer.end_s)

    def check(self, begin_s: float, link: Link | None = None) -> None:
        """Raise PeerLost if a link has failed, the network was stopped, or nothing has moved for too long."""
        if self._bug is not None:
            raise self._bug
        if self._failure is not None and not self._watch.is_stopped:
            reason, rank = self._failure
            raise PeerLost(reason, label=self.label, rank=rank, waited_s=time.perf_counter() - begin_s)
        silent = link or next((each for each in self.links.values() if each.inbox or each.outbox), None)
        rank = silent.rank if silent is not None else None
        self._watch.check(self.label, rank, max(begin_s, self._last_progress_s), begin_s)
