"""Large sums over a slow network: round a ring of nodes, against shares that go straight to every member.

Four nodes of two ranks (network namespaces: needs root and iproute2), each node sending at most 200 Mbit/s. Bar: at
least 1.3 times as fast, with the same bits. A node's link carries the tensor twice in a ring, three times in shares.
"""

from __future__ import annotations

import hashlib
import statistics
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from moiety.runtime.comm.priority import Priority
from tests.ranks import run_ranks
from tests.two_tier import obstacle, two_tier

if TYPE_CHECKING:
    from tests.ranks import Place

NODES, PER_NODE, RATE_BITS_PER_S = 4, 2, 200e6
SIZES_MIB = (1, 4, 16)
REPEATS = 3
LEAST_SPEEDUP = 1.3


def measure(place: Place, ranks_per_node: int) -> list[tuple[float, str]]:
    """Return the median seconds and the sum's bits by size; nodes of one rank each make the group send shares."""
    network = replace(place, ranks_per_node=ranks_per_node).network()
    group = network.group(tuple(range(place.num_ranks)), "sums", Priority.REDUCTION)
    found: list[tuple[float, str]] = []
    for size_mib in SIZES_MIB:
        generator = torch.Generator().manual_seed(place.rank)
        given = torch.randn(size_mib << 18, generator=generator)
        times: list[float] = []
        total = given
        for repeat in range(REPEATS + 1):
            total = given.clone()
            group.barrier()
            start_s = time.perf_counter()
            group.all_reduce(total)
            times += [time.perf_counter() - start_s] if repeat else []
        found.append((statistics.median(times), hashlib.sha256(total.numpy().tobytes()).hexdigest()))
    group.barrier()
    network.close()
    return found


def main() -> int:
    """Print the table; return 0 when the bar holds."""
    reason = obstacle()
    if reason is not None:
        print(f"not measured: {reason}")
        return 0
    met = True
    with two_tier(NODES, RATE_BITS_PER_S) as nodes:
        ring, shares = (
            run_ranks(measure, NODES * PER_NODE, per_node, nodes=nodes, timeout_s=300.0) for per_node in (PER_NODE, 1)
        )
    for index, size_mib in enumerate(SIZES_MIB):
        ring_s, shares_s = (max(rank[index][0] for rank in each) for each in (ring, shares))
        equal = len({rank[index][1] for each in (ring, shares) for rank in each}) == 1
        met = met and equal and (size_mib == 1 or shares_s / ring_s >= LEAST_SPEEDUP)
        wire_s = 2 * (size_mib << 20) * 8 / RATE_BITS_PER_S
        print(
            f"all-reduce of {size_mib:2} MiB: {shares_s:5.2f} s in shares, {ring_s:5.2f} s round the ring: "
            f"{shares_s / ring_s:.2f}x, {wire_s / ring_s:.0%} of its wire; {'the same bits' if equal else 'OTHER BITS'}"
        )
    print(f"bar: {LEAST_SPEEDUP}x from 4 MiB on: {'met' if met else 'NOT MET'}")
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
