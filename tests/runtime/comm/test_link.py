"""Laws of links: messages arrive whole and in order, however little the kernel takes at a time."""

from __future__ import annotations

import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("torch")

from moiety.runtime.comm.link import Closed, Link, Message, Operation


def connected(buffer_bytes: int) -> tuple[Link, Link]:
    """Return the two ends of a connection whose kernel buffers are small."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer_bytes)
        calling = socket.socket()
        calling.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, buffer_bytes)
        calling.connect(listener.getsockname())
        called, _ = listener.accept()
    return Link(calling, 0), Link(called, 1)


@given(sizes=st.lists(st.sampled_from((0, 1, 7, 8, 9, 5_000, 60_000)), max_size=8))
def test_messages_arrive_whole_and_in_order(sizes: list[int]) -> None:
    sender, receiver = connected(2048)
    contents = [bytes((place + number) % 251 for place in range(size)) for number, size in enumerate(sizes)]
    rooms = [bytearray(size) for size in sizes]
    operation = Operation()
    sender.outbox += [Message(operation, memoryview(content)) for content in contents]
    receiver.inbox += [Message(operation, memoryview(room)) for room in rooms]
    num_sent = num_received = 0
    while receiver.inbox:
        num_sent += bool(sender.outbox) and sender.push() is operation
        num_received += receiver.pull() is operation
    assert [bytes(room) for room in rooms] == contents
    assert num_sent == num_received == len(sizes)
    sender.socket.close()
    receiver.socket.close()


@pytest.mark.parametrize(("sent", "expected"), [(10, 12), (12, 10), (0, 1), (1, 0)])
def test_a_message_of_another_size_is_told(sent: int, expected: int) -> None:
    sender, receiver = connected(2048)
    sender.outbox += [Message(Operation(), memoryview(bytes(sent))), Message(Operation(), memoryview(bytes(20)))]
    receiver.inbox += [Message(Operation(), memoryview(bytearray(expected)))]
    sender.push()
    sender.push()
    assert receiver.readable.poll(1000)
    with pytest.raises(AssertionError, match=f"rank 1 sends {sent} bytes where {expected} are expected"):
        receiver.pull()
    sender.socket.close()
    receiver.socket.close()


def test_a_connection_that_ends_is_told() -> None:
    sender, receiver = connected(2048)
    sender.socket.close()
    receiver.inbox.append(Message(Operation(), memoryview(bytearray(3))))
    assert receiver.readable.poll(1000)
    with pytest.raises(Closed, match="closed its connection"):
        receiver.pull()
    receiver.socket.close()
