"""Laws of the carrier: the most urgent class goes first, and waits for no more than one chunk of a lower one."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("torch")

from moiety.runtime.comm.bulk_transfer import BulkTransfer
from moiety.runtime.comm.carrier import Carrier
from moiety.runtime.comm.chunk_link import ChunkLink
from moiety.runtime.comm.link import Link
from moiety.runtime.comm.priority import Priority

if TYPE_CHECKING:
    from collections.abc import Iterator

CHUNK_BYTES = 100
BULK = tuple(priority for priority in Priority if priority.is_bulk)


@pytest.fixture(scope="module")
def connections() -> Iterator[tuple[socket.socket, socket.socket]]:
    """Return the two ends of a connection, which every example leaves empty."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        calling = socket.create_connection(listener.getsockname())
        called, _ = listener.accept()
    for end in (calling, called):
        end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    yield calling, called
    calling.close()
    called.close()


class Ends:
    """A sending and a receiving carrier over one connection, driven by turns."""

    def __init__(self, connections: tuple[socket.socket, socket.socket]) -> None:
        self.links = [ChunkLink(Link(connection, rank)) for rank, connection in enumerate(connections)]
        self.carriers = [Carrier(CHUNK_BYTES) for _ in self.links]
        for carrier, link in zip(self.carriers, self.links, strict=True):
            carrier.links[link.descriptor] = link
        self.sent: list[BulkTransfer] = []
        self.received: list[BulkTransfer] = []

    def send(self, priority: Priority, size_bytes: int) -> None:
        """Start a transfer at the sending end."""
        content = bytes((len(self.sent) + place) % 251 for place in range(size_bytes))
        self.sent.append(BulkTransfer(priority, memoryview(bytearray(content)), None, self.links[0]))
        self.carriers[0].add(self.sent[-1])

    def receive(self) -> None:
        """Start at the receiving end the next transfer that the sending end has started."""
        like = self.sent[len(self.received)]
        room = memoryview(bytearray(like.data.nbytes))
        self.received.append(BulkTransfer(like.priority, room, self.links[1], None))
        self.carriers[1].add(self.received[-1])

    def turn(self) -> None:
        """Let both ends do what they can."""
        for carrier, link in zip(self.carriers, self.links, strict=True):
            carrier.go_on()
            carrier.move(link)


steps = st.lists(
    st.one_of(
        st.tuples(st.just("send"), st.sampled_from(BULK), st.integers(0, 6 * CHUNK_BYTES)),
        st.just(("receive",)),
        st.just(("turn",)),
    ),
    max_size=30,
)


@given(steps=steps)
def test_a_chunk_goes_only_when_no_more_urgent_one_could(
    connections: tuple[socket.socket, socket.socket], steps: list[tuple[object, ...]]
) -> None:
    ends = Ends(connections)
    for name, *arguments in [*steps, *[("turn",)] * 3]:
        could_go = [each.priority for each in ends.sent if each.has_chunk]
        before = [each.sent_bytes for each in ends.sent]
        if name == "send":
            ends.send(*arguments)
        elif name == "receive" and len(ends.received) < len(ends.sent):
            ends.receive()
        elif name == "turn":
            ends.turn()
            after = [each.sent_bytes for each in ends.sent]
            went = [each.priority for place, each in enumerate(ends.sent) if after[place] > before[place]]
            assert sorted(went) == sorted(could_go)[: len(went)]
    while len(ends.received) < len(ends.sent):
        ends.receive()
    for _ in range(10_000):
        if all(each.ended.is_set() for each in ends.sent + ends.received):
            break
        ends.turn()
    for sent, received in zip(ends.sent, ends.received, strict=True):
        assert received.ended.is_set()
        assert received.failure is None
        assert sent.ended.is_set()
        assert received.data == sent.data
