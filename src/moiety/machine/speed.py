"""What this machine reaches when its ranks work at once: products, copies and loopback sockets, timed for a moment."""

from __future__ import annotations

import socket
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_SIDE = 768
_COPIED_BYTES = 96 * 2**20
_LEAST_COPIED_BYTES = 8 * 2**20
_SENT_BYTES = 16 * 2**20
_CHUNK_BYTES = 2**20
_PING_PONGS = 100
_LEAST_RUNS = 3
_BUDGET_S = 0.15
_TIMEOUT_S = 10.0


@dataclass(frozen=True, slots=True)
class MachineSpeed:
    """Rates of the whole machine, all workers together, and the latency of one message between two of them."""

    fp32_flops_per_s: float
    copied_bytes_per_s: float
    """Bytes read plus bytes written."""
    loopback_bytes_per_s: float
    """Bytes sent, while as many are received."""
    loopback_latency_s: float


def measured_speed(num_workers: int) -> MachineSpeed:
    """Return what `num_workers` threads reach together; takes about a second.

    Each figure is the best of several short runs, so that a busy moment of a shared machine does not count.
    """
    with ThreadPoolExecutor(num_workers) as pool:
        return MachineSpeed(
            fp32_flops_per_s=_product_rate(pool, num_workers),
            copied_bytes_per_s=_copy_rate(pool, num_workers),
            loopback_bytes_per_s=_loopback_rate(num_workers),
            loopback_latency_s=_loopback_latency_s(),
        )


def _best_s(run: Callable[[], object]) -> float:
    """Return the seconds of the quickest of several runs: three, and more within the budget of time."""
    began = time.perf_counter()
    best, runs = float("inf"), 0
    while runs < _LEAST_RUNS or time.perf_counter() - began < _BUDGET_S:
        start = time.perf_counter()
        run()
        best = min(best, time.perf_counter() - start)
        runs += 1
    return best


def _product_rate(pool: ThreadPoolExecutor, num_workers: int) -> float:
    """Return FLOP/s of float32 products of square matrices, one a worker."""
    generator = np.random.default_rng(0)
    left = generator.standard_normal((_SIDE, _SIDE), dtype=np.float32)
    outputs = [np.empty_like(left) for _ in range(num_workers)]

    def multiply(output: np.ndarray) -> None:
        np.matmul(left, left, out=output)

    return 2.0 * _SIDE**3 * num_workers / _best_s(lambda: list(pool.map(multiply, outputs)))


def _copy_rate(pool: ThreadPoolExecutor, num_workers: int) -> float:
    """Return bytes per second of copies beyond the caches, reads and writes counted, one array a worker."""
    size = max(_COPIED_BYTES // num_workers, _LEAST_COPIED_BYTES)
    sources = [np.ones(size, dtype=np.uint8) for _ in range(num_workers)]
    targets = [np.zeros_like(each) for each in sources]
    return 2.0 * size * num_workers / _best_s(lambda: list(pool.map(np.copyto, targets, sources)))


def _loopback_rate(num_workers: int) -> float:
    """Return bytes per second over loopback TCP, all workers sending to a neighbour at once."""
    with ExitStack() as stack:
        pairs = [_connected(stack) for _ in range(num_workers)]
        pool = stack.enter_context(ThreadPoolExecutor(2 * num_workers))
        chunk = bytes(_CHUNK_BYTES)
        share = max(_SENT_BYTES // num_workers // _CHUNK_BYTES, 1)

        def exchange() -> None:
            ends = [pool.submit(_send, sender, chunk, share) for sender, _ in pairs]
            ends += [pool.submit(_drain, receiver, share * _CHUNK_BYTES) for _, receiver in pairs]
            for end in ends:
                end.result()

        return share * _CHUNK_BYTES * num_workers / _best_s(exchange)


def _send(sender: socket.socket, chunk: bytes, times: int) -> None:
    for _ in range(times):
        sender.sendall(chunk)


def _drain(receiver: socket.socket, size_bytes: int) -> None:
    buffer = memoryview(bytearray(min(_CHUNK_BYTES, size_bytes)))
    left = size_bytes
    while left:
        got = receiver.recv_into(buffer, min(left, len(buffer)))
        if not got:
            raise ConnectionError("the loopback connection ended early")
        left -= got


def _loopback_latency_s() -> float:
    """Return half the time of a one-byte message there and back, the best of several rounds of them."""
    with ExitStack() as stack:
        first, second = _connected(stack)
        pool = stack.enter_context(ThreadPoolExecutor(1))
        rounds: Sequence[int] = range(_PING_PONGS)

        def echo() -> None:
            for _ in rounds:
                second.sendall(second.recv(1))

        def ping() -> None:
            end = pool.submit(echo)
            for _ in rounds:
                first.sendall(b"x")
                first.recv(1)
            end.result()

        return _best_s(ping) / (2 * _PING_PONGS)


def _connected(stack: ExitStack) -> tuple[socket.socket, socket.socket]:
    """Return the two ends of a TCP connection over loopback; the stack closes them."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(_TIMEOUT_S)
        first = stack.enter_context(socket.create_connection(server.getsockname(), timeout=_TIMEOUT_S))
        second = stack.enter_context(server.accept()[0])
    second.settimeout(_TIMEOUT_S)
    for end in (first, second):
        end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return first, second
