"""A foreground exchange while a bulk transfer fills the link between two nodes.

Two nodes of two ranks, 200 Mbit/s between them (network namespaces: needs root and iproute2). Every half second the
ranks exchange 1 MiB each, all to all, or sum 1 MiB; meanwhile every rank sends 48 MiB to its counterpart in the other
node: over the foreground's own connections, over connections of its own but in one piece, and through the bulk queue,
in chunks that give way. Bars: the exchange takes at most 1.5 times its time alone, the bulk transfer at most 1.4 times.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from moiety.runtime.comm.bulk import BulkQueue
from moiety.runtime.comm.priority import Priority
from tests.ranks import run_ranks
from tests.two_tier import obstacle, two_tier

if TYPE_CHECKING:
    from moiety.runtime.comm.group import Group
    from moiety.runtime.comm.pending import Pending
    from tests.ranks import Place

WORLD = (0, 1, 2, 3)
RATE_BITS_PER_S = 200e6
EXCHANGED_BYTES = 1 << 20
PERIOD_S = 0.5
NUM_ALONE = 8
"""Exchanges that are timed without a bulk transfer."""
MOST_FOREGROUND = 1.5
MOST_BULK = 1.4
MODES = {
    "same connections": "one group for both",
    "own connections": "a group of its own, in one piece",
    "bulk queue": "a group of its own, in chunks that give way",
}


class BulkEnd:
    """The observer that remembers when the last bulk transfer ended."""

    def __init__(self) -> None:
        self.end_s = 0.0

    def waited(self, start_s: float, end_s: float, came_s: float) -> None:
        """Take no note of waits."""

    def transferred(
        self, name: str, priority: Priority, start_s: float, end_s: float, tier_bytes: tuple[int, ...]
    ) -> None:
        """Take note of the end of a send or a receipt."""
        del priority, start_s, tier_bytes
        if name.rsplit(maxsplit=1)[-1] in ("send", "receive"):
            self.end_s = max(self.end_s, end_s)


def measure(place: Place, mode: str | None, operation: str | None, bulk_bytes: int) -> tuple[list[float], float]:
    """Return the times of the foreground exchanges and of the bulk transfer of one rank, in seconds.

    Without a mode there is no bulk transfer, without an operation no foreground.
    """
    bulk_end = BulkEnd()
    network = place.network(observer=bulk_end)
    queue = BulkQueue(network)
    foreground = network.group(WORLD, "foreground", Priority.EXCHANGE)
    control = network.group(WORLD, "control", Priority.REDUCTION)
    groups = {
        "same connections": foreground,
        "own connections": network.group(WORLD, "own", Priority.MIGRATION),
        "bulk queue": queue.group(WORLD, "queued", Priority.MIGRATION),
    }
    for _ in range(3):
        exchange(foreground, operation or "all_to_all")
    begin_s = float(control.broadcast(torch.tensor([time.perf_counter() + 0.1], dtype=torch.float64), 0))
    time.sleep(max(0.0, begin_s - time.perf_counter()))
    pending = []
    if mode is not None:
        peer = (place.rank + 2) % 4
        tensors = torch.zeros(2, bulk_bytes, dtype=torch.uint8)
        pending = [groups[mode].receive(tensors[0], peer), groups[mode].send(tensors[1], peer)]
    times_s: list[float] = []
    while operation is not None and (len(times_s) < NUM_ALONE if mode is None else is_under_way(control, pending)):
        due_s = begin_s + PERIOD_S * (0.5 + len(times_s))
        time.sleep(max(0.0, due_s - time.perf_counter()))
        start_s = time.perf_counter()
        exchange(foreground, operation)
        times_s.append(time.perf_counter() - start_s)
    for each in pending:
        each.wait()
    control.barrier()
    queue.close()
    network.close()
    return times_s, bulk_end.end_s - begin_s


def exchange(group: Group, operation: str) -> None:
    """Exchange 1 MiB of this rank, or sum it."""
    tensor = torch.zeros(EXCHANGED_BYTES // 4)
    if operation == "all_to_all":
        counts = [tensor.numel() // group.size] * group.size
        group.all_to_all(tensor, counts, counts).wait()
    else:
        group.all_reduce(tensor)


def is_under_way(control: Group, pending: list[Pending]) -> bool:
    """Return whether any rank has a bulk transfer that has not ended."""
    return bool(control.all_reduce(torch.tensor([sum(not each.done() for each in pending)])))


def slowest(results: list[tuple[list[float], float]]) -> tuple[list[float], float]:
    """Return the times of the slowest rank: of every exchange, and of the bulk transfer."""
    return [max(times_s) for times_s in zip(*(each[0] for each in results), strict=True)], max(
        each[1] for each in results
    )


def main() -> int:
    """Print the table; return 0 when the bars hold."""
    parser = argparse.ArgumentParser(description="A foreground exchange beside a bulk transfer.")
    parser.add_argument("--bulk-mib", type=int, default=48, metavar="N")
    bulk_bytes = parser.parse_args().bulk_mib << 20
    reason = obstacle()
    if reason is not None:
        print(f"not measured: {reason}")
        return 0
    is_met = True
    with two_tier(2, RATE_BITS_PER_S) as nodes:

        def run(mode: str | None, operation: str | None) -> tuple[list[float], float]:
            return slowest(run_ranks(measure, 4, mode, operation, bulk_bytes, nodes=nodes, timeout_s=120.0))

        _, bulk_alone_s = run("bulk queue", None)
        print(f"bulk alone {bulk_alone_s:.2f} s")
        for operation in ("all_to_all", "all_reduce"):
            alone_s = statistics.median(run(None, operation)[0])
            print(f"{operation} alone {alone_s * 1e3:.0f} ms")
            for mode, words in MODES.items():
                times_s, bulk_s = run(mode, operation)
                factor, bulk_factor = statistics.median(times_s) / alone_s, bulk_s / bulk_alone_s
                print(
                    f"  {words:44} {statistics.median(times_s) * 1e3:6.0f} ms = {factor:5.2f}x, "
                    f"worst {max(times_s) * 1e3:6.0f} ms of {len(times_s):2}; bulk {bulk_s:5.2f} s = {bulk_factor:.2f}x"
                )
                if mode == "bulk queue":
                    is_met = is_met and factor <= MOST_FOREGROUND and bulk_factor <= MOST_BULK
    print(f"bars: exchange <= {MOST_FOREGROUND}x, bulk <= {MOST_BULK}x: {'met' if is_met else 'NOT MET'}")
    return 0 if is_met else 1


if __name__ == "__main__":
    sys.exit(main())
