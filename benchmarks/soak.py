"""A server under load for long, with a fault every half a minute: no token lost or wrong, and nothing that grows.

    python benchmarks/soak.py --minutes 20

Clients stream continuations one after the other from `moiety serve` on three ranks; each is compared with those of
`transformers`. The faults come in turn and on schedule, whoever is away: ranks killed, told to end, stopped, slowed,
two at once, a second while the first is away; clients that hang up, and that read nothing. One rank has room for all
experts, so nothing is ever refused; all ranks serve again before the next fault. Memory, open files and threads of the
server are read once a second. After the first quarter of the time, which is warm-up, the mean of the last third of the
samples may be above that of the first third by at most 5 % of memory, 2 files, 1 thread.
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
from contextlib import suppress
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


def kill_one(server: Server) -> set[int]:
    """Kill a rank."""
    return struck(server, 0, signal.SIGKILL)


def tell_one_to_end(server: Server) -> set[int]:
    """Tell a rank to end."""
    return struck(server, 1, signal.SIGTERM)


def stop_one(server: Server) -> set[int]:
    """Stop a rank, for good."""
    return struck(server, 2, signal.SIGSTOP)


def kill_two(server: Server) -> set[int]:
    """Kill two ranks at once."""
    return struck(server, 1, signal.SIGKILL) | struck(server, 2, signal.SIGKILL)


def kill_a_second(server: Server) -> set[int]:
    """Kill a rank, and another one when the others have gone on without it."""
    first = struck(server, 2, signal.SIGKILL)
    awaited(lambda: first.isdisjoint(pids(server)) and all(each["state"] == "ready" for each in server.ranks()))
    return first | struck(server, 0, signal.SIGKILL)


def slow_one(server: Server) -> set[int]:
    """Let a rank run for a quarter of the time."""
    with slowed(pids(server)[0], 0.02, 0.06):
        time.sleep(FAULT_S)
    return set()


def hang_up(server: Server) -> set[int]:
    """Ask for streams, and leave in the midst of them."""
    for prompt in PROMPTS:
        with server.client as client:
            body = {"prompt": prompt, "max_tokens": LONGEST, "stream": True}
            with client.stream("POST", "/v1/completions", json=body) as answer:
                next(answer.iter_lines())
    return set()


def read_nothing(server: Server) -> set[int]:
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
    return set()


FAULTS: tuple[Callable[[Server], set[int]], ...] = (
    *(kill_one, hang_up, stop_one, tell_one_to_end, read_nothing, kill_two, slow_one, kill_a_second),
)
"""What may happen to a server; each returns the processes that it took."""


@dataclass
class Strike:
    """A fault at its time."""

    name: str
    time_s: float
    """Since the beginning."""
    victims: set[int]
    back_after_s: float | None = None
    """Until all ranks served, without the victims; None: not before the next one."""


def pids(server: Server) -> list[int]:
    """Return the pids of the ranks."""
    return [each["pid"] for each in server.ranks()]


def struck(server: Server, rank: int, number: signal.Signals) -> set[int]:
    """Send a signal to one of the ranks that are there; return its pid."""
    there = pids(server)
    if not there:  # all are being started anew
        return set()
    victim = there[rank % len(there)]
    with suppress(ProcessLookupError):  # where it has just gone by itself
        send(victim, number)
    return {victim}


def due_s(number: int) -> float:
    """Return when a fault, counted from 0, is due."""
    return (number + 0.5) * PERIOD_S


def soak(server: Server, answers: Sequence[Answer], seconds: float) -> tuple[list[Client], list[Sample], list[Strike]]:
    """Load a server for so long, a fault every `PERIOD_S`; return the clients, the samples and the faults."""
    is_over = threading.Event()
    clients = [Client(server, answers, number, is_over) for number in range(NUM_CLIENTS)]
    samples: list[Sample] = []
    strikes: list[Strike] = []
    faults, begin_s = itertools.cycle(FAULTS), time.monotonic()
    while (now_s := time.monotonic() - begin_s) < seconds + PERIOD_S / 2:  # the last fault too gets its time
        if due_s(len(strikes)) <= now_s < seconds:
            fault = next(faults)
            strikes.append(Strike(fault.__name__, now_s, fault(server)))
        note_return(server, strikes, begin_s)
        samples.append(Sample.of(server.process.pid))
        time.sleep(1.0)
    is_over.set()
    for each in clients:
        each.join()
    awaited(lambda: server.metric("moiety_num_requests_running") == 0)
    return clients, samples, strikes


def note_return(server: Server, strikes: Sequence[Strike], begin_s: float) -> None:
    """Note when all ranks serve again after the last fault."""
    if strikes and (last := strikes[-1]).back_after_s is None:
        is_back = is_at_full_strength(server) and last.victims.isdisjoint(pids(server))
        last.back_after_s = time.monotonic() - begin_s - last.time_s if is_back else None


def main() -> int:
    """Soak and print; return 1 where a token was wrong, ranks stayed away, or something grew."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=20.0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        checkpoint = tiny_checkpoint(folder / "model")
        fleet = Fleet(planned(folder / "plan", checkpoint), checkpoint)
        try:
            server = fleet.server()
            clients, samples, strikes = soak(server, answers_of(checkpoint, LONGEST, PROMPTS), options.minutes * 60)
        finally:
            fleet.close()
    print(f"{options.minutes:g} minutes, {NUM_RANKS} ranks, {NUM_CLIENTS} clients")
    found = (*wrong_of(clients), *late_of(strikes, options.minutes * 60), *grown_of(samples))
    for words in found:
        print(f"FAILED: {words}")
    return int(bool(found))


def wrong_of(clients: Sequence[Client]) -> list[str]:
    """Print what clients have read; return what was wrong with it."""
    num_streams, num_tokens = (sum(getattr(each, name) for each in clients) for name in ("num_streams", "num_tokens"))
    gap_s = max(each.longest_gap_s for each in clients)
    wrong = [words for each in clients for words in each.wrong]
    print(f"{num_streams:,} streams, {num_tokens:,} tokens; longest gap {gap_s:.2f} s; wrong: {len(wrong)}")
    return wrong


def late_of(strikes: Sequence[Strike], seconds: float) -> list[str]:
    """Print which faults there were; return which there were not, and after which ranks stayed away."""
    latest_s = max((each.time_s - due_s(number) for number, each in enumerate(strikes)), default=0.0)
    print(f"{len(strikes)} faults, each at most {latest_s:.1f} s after its time")
    for name in dict.fromkeys(each.name for each in strikes):
        found = [each.back_after_s for each in strikes if each.name == name]
        after = "NOT before the next" if None in found else f"after {max(filter(None, found)):.1f} s at most"
        print(f"  {len(found)} {name}: all ranks served again {after}")
    due = itertools.takewhile(lambda each_s: each_s < seconds, map(due_s, itertools.count(len(strikes))))
    missed = [f"no fault at {each_s:.0f} s" for each_s in due]
    away = [f"{each.name} at {each.time_s:.0f} s: ranks were away" for each in strikes if each.back_after_s is None]
    return [*missed, *away]


def grown_of(samples: Sequence[Sample]) -> list[str]:
    """Print what the server's process held; return what has grown."""
    grown: list[str] = []
    for name, allowed in GROWTH.items():
        values = [float(getattr(each, name)) for each in samples[len(samples) // 4 :]]
        third = len(values) // 3
        first, last = statistics.mean(values[:third]), statistics.mean(values[-third:])
        print(f"{name}: {first:,.1f} after warm-up, {last:,.1f} at the end")
        if last - first > (allowed * first if name == "memory" else allowed):
            grown.append(f"{name} has grown")
    return grown


if __name__ == "__main__":
    sys.exit(main())
