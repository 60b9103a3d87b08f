"""The collectives beside those of PyTorch's gloo, over loopback, in the same processes by turns.

Prints the median time of an operation on the slowest rank, in microseconds. Decoding waits for small ones: an
all-reduce of one token's hidden state (4-64 KB) twice a layer, counts and rows of an exchange twice a layer.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch.distributed import PrefixStore, ProcessGroupGloo, TCPStore

sys.path.insert(0, str(Path(__file__).parents[1]))

from moiety.runtime.comm.priority import Priority
from tests.ranks import run_ranks

if TYPE_CHECKING:
    from collections.abc import Callable

    from moiety.runtime.comm.group import Group
    from tests.ranks import Place

KIB = 1024
REDUCED_KIB = (1, 4, 16, 64, 256, 1024, 4096, 16384)
EXCHANGED_KIB = (1, 16, 64, 256, 1024, 4096)
"""To each member."""
DEADLINE = timedelta(seconds=60)


def cases(group: Group, gloo: ProcessGroupGloo) -> dict[str, tuple[Callable[[], object], Callable[[], object]]]:
    """Return every operation, by ours and by gloo."""
    table: dict[str, tuple[Callable[[], object], Callable[[], object]]] = {}

    def all_reduce(size_kib: int) -> None:
        tensor = torch.zeros(size_kib * KIB // 4)
        table[f"all_reduce {size_kib} KiB"] = (
            lambda: group.all_reduce(tensor),
            lambda: gloo.allreduce(tensor).wait(DEADLINE),
        )

    def all_to_all(size_kib: int) -> None:
        rows, counts = torch.zeros(group.size, size_kib * KIB // 4), [1] * group.size
        table[f"all_to_all {size_kib} KiB each"] = (
            lambda: group.all_to_all(rows, counts, counts).wait(),
            lambda: gloo.alltoall_base(torch.empty_like(rows), rows, counts, counts).wait(DEADLINE),
        )

    for size_kib in REDUCED_KIB:
        all_reduce(size_kib)
    for size_kib in EXCHANGED_KIB:
        all_to_all(size_kib)
    counts = torch.zeros(group.size, 64, dtype=torch.int64)
    table["exchange_counts of 64"] = (
        lambda: group.exchange_counts(counts),
        lambda: gloo.alltoall_base(torch.empty_like(counts), counts, [], []).wait(DEADLINE),
    )
    table["barrier"] = (group.barrier, lambda: gloo.barrier().wait(DEADLINE))
    return table


def measure(place: Place, num_rounds: int) -> dict[str, tuple[float, float]]:
    """Return the median seconds of every operation, by ours and by gloo."""
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    network = place.network()
    group = network.group(tuple(range(place.num_ranks)), "measured", Priority.REDUCTION)
    store = PrefixStore("gloo", TCPStore(place.store_host, place.store_port, is_master=False))
    gloo = ProcessGroupGloo(store, place.rank, place.num_ranks, DEADLINE)
    medians: dict[str, tuple[float, float]] = {}
    for name, both in cases(group, gloo).items():
        times_s: tuple[list[float], list[float]] = ([], [])
        for _ in range(num_rounds):
            for run, taken_s in zip(both, times_s, strict=True):
                group.barrier()
                run()
                for _ in range(5):
                    start_s = time.perf_counter()
                    run()
                    taken_s.append(time.perf_counter() - start_s)
        medians[name] = (statistics.median(times_s[0]), statistics.median(times_s[1]))
    group.barrier()
    network.close()
    return medians


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="The collectives beside gloo's.")
    parser.add_argument("--ranks", type=int, nargs="+", default=[2, 4], metavar="N")
    parser.add_argument("--rounds", type=int, default=20, metavar="N")
    options = parser.parse_args()
    for num_ranks in options.ranks:
        results = run_ranks(measure, num_ranks, options.rounds, timeout_s=600.0)
        print(f"{num_ranks} ranks{'':22} ours us   gloo us    ratio")
        for name in results[0]:
            ours_s, gloo_s = (max(each[name][which] for each in results) for which in (0, 1))
            print(f"  {name:26} {ours_s * 1e6:9.0f} {gloo_s * 1e6:9.0f} {gloo_s / ours_s:8.1f}")
