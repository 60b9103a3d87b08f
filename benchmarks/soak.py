"""A server under load for long, with a fault every half a minute: no token lost or wrong, and nothing that grows.

    python benchmarks/soak.py --minutes 20

Clients stream continuations one after the other from `moiety serve` on three ranks; each is compared with those of
`transformers`. The faults come in turn: ranks killed, told to end, stopped, slowed, two at once; clients that hang up,
and that read nothing. Memory, open files and threads of the server are read once a second. After the first quarter of
the time, which is warm-up, the mean of the last third of the samples may be above that of the first third by at most
5 % of memory, 2 files, 1 thread.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import signal
import socket
import statistics
import sys
import tempfile
import threading
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.chaos.cluster import NUM_RANKS, Fleet, answers_of, is_at_full_strength, planned, tiny_checkpoint
from tests.chaos.faults import slowed
from tests.chaos.streams import Stream
from tests.serve.servers import awaited, send

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tests.chaos.cluster import Answer
    from tests.serve.servers import Server

PERIOD_S = 30.0
LONGEST = 120
PROMPTS = [[5, 9, 11], [7] * 30, [3], [100, 2, 50, 4], list(range(1, 21)), [8, 8]]
NUM_CLIENTS = 4
FAULT_S = 2.0
"""How long a fault lasts that passes by itself."""
GROWTH = {"memory": 0.05, "files": 2.0, "threads": 1.0}
"""What may be more at the end: a share of memory, and numbers of the others."""


@dataclass(frozen=True)
class Sample:
    """What the server's process holds at a time."""

    memory: float
    """Bytes that are resident."""
    files: float
    threads: float

    @classmethod
    def of(cls, pid: int) -> Sample:
        """Read it of a process."""
        status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
        num_files = sum(1 for _ in Path(f"/proc/{pid}/fd").iterdir())
        return cls(int(status["VmRSS"].split()[0]) * 1024, num_files, int(status["Threads"]))


class Client(threading.Thread):
    """Streams one continuation after the other, and compares it."""

    def __init__(self, server: Server, answers: Sequence[Answer], seed: int, is_over: threading.Event) -> None:
        super().__init__(daemon=True)
        self.num_streams = self.num_tokens = 0
        self.longest_gap_s = 0.0
        self.wrong: list[str] = []
        self._server, self._answers, self._draw, self._is_over = server, answers, random.Random(seed), is_over  # noqa: S311 - no secret
        self.start()

    def run(self) -> None:
        """Stream until it is over."""
        while not self._is_over.is_set():
            prompt, tokens = self._draw.choice(self._answers)
            wanted = self._draw.randint(2, len(tokens))
            stream = Stream(self._server, prompt, wanted)
            try:
                stream.check(tokens[:wanted])
            except AssertionError as error:
                self.wrong.append(f"{prompt}: {str(error) or 'other tokens'}: {stream.error}, {stream.tokens}")
            self.num_streams += 1
            self.num_tokens += len(stream.tokens)
            self.longest_gap_s = max(self.longest_gap_s, stream.longest_gap_s)


def kill_one(server: Server) -> None:
    """Kill a rank."""
    send(pids(server)[0], signal.SIGKILL)


def tell_one_to_end(server: Server) -> None:
    """Tell a rank to end."""
    send(pids(server)[1], signal.SIGTERM)


def stop_one(server: Server) -> None:
    """Stop a rank, for good."""
    send(pids(server)[2], signal.SIGSTOP)


def kill_two(server: Server) -> None:
    """Kill all ranks but one."""
    for each in pids(server)[1:]:
        send(each, signal.SIGKILL)


def slow_one(server: Server) -> None:
    """Let a rank run for a quarter of the time."""
    with slowed(pids(server)[0], 0.02, 0.06):
        time.sleep(FAULT_S)


def hang_up(server: Server) -> None:
    """Ask for streams, and leave in the midst of them."""
    for prompt in PROMPTS:
        with server.client as client:
            body = {"prompt": prompt, "max_tokens": LONGEST, "stream": True}
            with client.stream("POST", "/v1/completions", json=body) as answer:
                next(answer.iter_lines())


def read_nothing(server: Server) -> None:
    """Ask for streams, and read nothing of them."""
    host, _, port = server.address.removeprefix("http://").partition(":")
    body = json.dumps({"prompt": PROMPTS[0], "max_tokens": LONGEST, "stream": True}).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    connections = [socket.create_connection((host, int(port))) for _ in range(NUM_CLIENTS)]
    for each in connections:
        each.sendall(head + body)
    time.sleep(FAULT_S)
    for each in connections:
        each.close()


FAULTS: tuple[Callable[[Server], None], ...] = (
    *(kill_one, hang_up, stop_one, tell_one_to_end, read_nothing, kill_two, slow_one),
)


def pids(server: Server) -> list[int]:
    """Return the pids of the ranks."""
    return [each["pid"] for each in server.ranks()]


def soak(server: Server, answers: Sequence[Answer], seconds: float) -> tuple[list[Client], list[Sample], Counter[str]]:
    """Load a server for so long, a fault every `PERIOD_S`; return the clients, the samples, the faults by name."""
    is_over = threading.Event()
    clients = [Client(server, answers, number, is_over) for number in range(NUM_CLIENTS)]
    samples: list[Sample] = []
    done: Counter[str] = Counter()
    begin_s = time.monotonic()
    next_s, faults = begin_s + PERIOD_S / 2, itertools.cycle(FAULTS)
    while time.monotonic() < begin_s + seconds:
        time.sleep(1.0)
        samples.append(Sample.of(server.process.pid))
        if time.monotonic() >= next_s and is_at_full_strength(server):
            fault = next(faults)
            fault(server)
            done[fault.__name__] += 1
            next_s = max(next_s + PERIOD_S, time.monotonic())
    is_over.set()
    for each in clients:
        each.join()
    awaited(lambda: server.metric("moiety_num_requests_running") == 0)
    return clients, samples, done


def growth(samples: Sequence[Sample], name: str) -> tuple[float, float]:
    """Return the mean of a quantity at the beginning, after warm-up, and at the end."""
    values = [float(getattr(each, name)) for each in samples[len(samples) // 4 :]]
    third = len(values) // 3
    return statistics.mean(values[:third]), statistics.mean(values[-third:])


def main() -> int:
    """Soak and print; return 1 where a token was wrong or something grew."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=20.0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        checkpoint = tiny_checkpoint(folder / "model")
        fleet = Fleet(planned(folder / "plan", checkpoint), checkpoint)
        try:
            server = fleet.server()
            clients, samples, done = soak(server, answers_of(checkpoint, LONGEST, PROMPTS), options.minutes * 60)
        finally:
            fleet.close()
    wrong = [words for each in clients for words in each.wrong]
    faults = ", ".join(f"{count} {fault}" for fault, count in done.items())
    num_streams, num_tokens = (sum(getattr(each, name) for each in clients) for name in ("num_streams", "num_tokens"))
    gap_s = max(each.longest_gap_s for each in clients)
    print(f"{options.minutes:g} minutes, {NUM_RANKS} ranks, {NUM_CLIENTS} clients, {done.total()} faults: {faults}")
    print(f"{num_streams:,} streams, {num_tokens:,} tokens; longest gap {gap_s:.2f} s; wrong: {len(wrong)}")
    for words in wrong[:5]:
        print(f"  {words}")
    grown = []
    for quantity, allowed in GROWTH.items():
        first, last = growth(samples, quantity)
        if last - first > (allowed * first if quantity == "memory" else allowed):
            grown.append(quantity)
        print(
            f"{quantity}: {first:,.1f} after warm-up, {last:,.1f} at the end{': it GREW' if quantity in grown else ''}"
        )
    return int(bool(wrong or grown))


if __name__ == "__main__":
    sys.exit(main())
