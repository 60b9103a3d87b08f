"""Bulk: big transfers, cut into chunks that give way to everything more urgent."""

from __future__ import annotations

import select
import threading
import time
from typing import TYPE_CHECKING

from moiety.runtime.comm.bulk_transfer import BulkTransfer
from moiety.runtime.comm.carrier import Carrier
from moiety.runtime.comm.chunk_link import ChunkLink
from moiety.runtime.comm.peer_lost import PeerLost
from moiety.runtime.comm.reduction import bytes_of
from moiety.runtime.comm.waker import Waker
from moiety.runtime.comm.watch import SLICE_S

if TYPE_CHECKING:
    import torch

    from moiety.runtime.comm.ledger import Ledger
    from moiety.runtime.comm.network import Network
    from moiety.runtime.comm.pending import Pending
    from moiety.runtime.comm.priority import Priority

CHUNK_BYTES = 65_536
_PERIOD_S = 0.001
"""How often a queue that is held, or whose last chunk is on its way, looks whether it may go on."""


class BulkGroup:
    """Ranks that hand each other big tensors through a queue; any two of them start theirs in the same order."""

    def __init__(
        self, queue: BulkQueue, ranks: tuple[int, ...], index: int, links: dict[int, ChunkLink], ledger: Ledger
    ) -> None:
        self.ranks = ranks
        self.index = index
        self.size = len(ranks)
        self._ledger = ledger
        self._queue = queue
        self._links = links

    def send(self, tensor: torch.Tensor, to_index: int) -> Pending:
        """Send a contiguous tensor to another member; the transfer ends when that one has all of it."""
        return self._submit("send", tensor, None, to_index)

    def receive(self, tensor: torch.Tensor, from_index: int) -> Pending:
        """Fill a contiguous tensor with what another member sends."""
        return self._submit("receive", tensor, from_index, None)

    def broadcast(self, tensor: torch.Tensor, source_index: int) -> Pending:
        """Fill a contiguous tensor with that of member `source_index`; each member hands the chunks to the next."""
        distance = (self.index - source_index) % self.size
        source = (self.index - 1) % self.size if distance else None
        target = (self.index + 1) % self.size if distance < self.size - 1 else None
        return self._submit("broadcast", tensor, source, target)

    def _submit(self, name: str, tensor: torch.Tensor, source: int | None, target: int | None) -> Pending:
        assert tensor.is_contiguous(), "a tensor to carry in chunks lies in one piece"
        start_s = time.perf_counter()
        tier_bytes = self._ledger.by_tier([] if target is None else [(target, tensor.nbytes)])
        self._ledger.count(tier_bytes)
        transfer = BulkTransfer(
            self._ledger.priority,
            bytes_of(tensor),
            None if source is None else self._links[source],
            None if target is None else self._links[target],
            on_end=self._ledger.teller(name, start_s, tier_bytes),
            keep=tensor,
        )
        self._queue.submit(transfer)
        return PendingBulk(self._queue, self._ledger.label, transfer, tensor)


class PendingBulk:
    """A bulk transfer, with the tensor that it empties or fills."""

    def __init__(self, queue: BulkQueue, label: str, transfer: BulkTransfer, tensor: torch.Tensor) -> None:
        self._queue = queue
        self._label = label
        self._transfer = transfer
        self._tensor = tensor

    def wait(self) -> torch.Tensor:
        """Return the tensor when all of it has gone and come; PeerLost if it cannot."""
        self._queue.wait(self._transfer, self._label)
        return self._tensor

    def done(self) -> bool:
        """Return whether all of it has gone and come."""
        return self._transfer.ended.is_set() and self._transfer.failure is None


class BulkQueue:
    """One thread a rank that carries bulk transfers in chunks of at most `chunk_bytes`, the most urgent class first.

    One chunk of this rank is under way at a time. While a foreground transfer is, the next is held back, and so are
    the confirmations that let peers send theirs. So no class waits for more than one chunk of a lower one.
    """

    def __init__(self, network: Network, *, chunk_bytes: int = CHUNK_BYTES) -> None:
        self._network = network
        self._carrier = Carrier(chunk_bytes)
        self._lock = threading.Lock()
        self._waker = Waker()
        self._last_held_s = 0.0
        self._bug: AssertionError | None = None
        self._is_closing = False
        self._thread = threading.Thread(target=self._run, name=f"bulk of rank {network.rank}", daemon=True)
        self._thread.start()

    def group(self, ranks: tuple[int, ...], label: str, priority: Priority) -> BulkGroup:
        """Return a new group of `ranks` for transfers of a bulk class; all members call it with the same arguments."""
        assert priority.is_bulk, f"{priority.name} does not wait in a queue"
        links = self._network.connect(ranks, f"bulk {label}", priority)
        chunk_links = {place: ChunkLink(link) for place, link in links.items()}
        with self._lock:
            self._carrier.links |= {link.descriptor: link for link in chunk_links.values()}
        self._waker.rouse()
        ledger = self._network.ledger(ranks, label, priority)
        return BulkGroup(self, ranks, ranks.index(self._network.rank), chunk_links, ledger)

    def submit(self, transfer: BulkTransfer) -> None:
        """Start a transfer of a group of this queue."""
        with self._lock:
            self._carrier.add(transfer)
        self._waker.rouse()

    def wait(self, transfer: BulkTransfer, label: str) -> None:
        """Wait until the transfer has ended; PeerLost if it cannot. A queue that is held does not run out of time."""
        begin_s = time.perf_counter()
        while not transfer.ended.wait(SLICE_S):
            if self._bug is not None:
                raise self._bug
            since_s = max(begin_s, self._last_held_s, self._carrier.last_progress_s)
            self._network.watch.check(label, transfer.peer, since_s, begin_s)
        if transfer.failure is not None:
            self._network.watch.check(label, None, begin_s, begin_s)
            waited_s = time.perf_counter() - begin_s
            raise PeerLost(transfer.failure, label=label, rank=transfer.peer, waited_s=waited_s)

    def close(self) -> None:
        """End the thread; what has not ended does not."""
        self._is_closing = True
        self._waker.rouse()
        self._thread.join()
        self._waker.close()

    def _run(self) -> None:
        try:
            while not self._is_closing:
                self._turn()
        except AssertionError as error:  # the thread that waits shall raise it
            self._bug = error

    def _turn(self) -> None:
        poll = select.poll()
        poll.register(self._waker.descriptor, select.POLLIN)
        carrier = self._carrier
        with self._lock:
            is_waiting = carrier.may_go_on
            if is_waiting and self._network.is_foreground_moving():
                self._last_held_s = time.perf_counter()
            elif is_waiting:
                carrier.go_on()
                is_waiting = carrier.may_go_on
            for descriptor, link in carrier.links.items():
                poll.register(descriptor, select.POLLIN | (select.POLLOUT if link.is_stuck else 0))
        ready = poll.poll(_PERIOD_S * 1000 if is_waiting else None)
        with self._lock:
            for descriptor, _ in ready:
                if descriptor == self._waker.descriptor:
                    self._waker.clear()
                elif descriptor in carrier.links:
                    carrier.move(carrier.links[descriptor])
