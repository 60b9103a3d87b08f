"""What a two-tier network must show: functions that each of four ranks in two nodes runs."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import torch

from moiety.runtime.comm.bulk import BulkQueue
from moiety.runtime.comm.priority import Priority

if TYPE_CHECKING:
    from tests.ranks import Place

WORLD = (0, 1, 2, 3)
PAIRS = {"node": ((0, 1), (2, 3)), "network": ((0, 2), (1, 3))}


def seconds_by_tier(place: Place, size_bytes: int) -> tuple[dict[str, float], dict[str, dict[str, int]]]:
    """Exchange with the other rank of the node, then with a rank of the other node; return the seconds and bytes."""
    network = place.network()
    seconds: dict[str, float] = {}
    sent: dict[str, dict[str, int]] = {}
    for tier, pairs in PAIRS.items():
        world = network.group(WORLD, "world", Priority.REDUCTION)
        pair = network.group(next(each for each in pairs if place.rank in each), tier, Priority.EXCHANGE)
        rows, counts = torch.zeros(2 * size_bytes, dtype=torch.uint8), [size_bytes, size_bytes]
        world.barrier()
        network.traffic.reset()
        begin_s = time.perf_counter()
        pair.all_to_all(rows, counts, counts).wait()
        world.barrier()
        seconds[tier] = time.perf_counter() - begin_s
        sent[tier] = network.traffic.snapshot()["exchange"]["sent_bytes"]
    network.close()
    return seconds, sent


def foreground_beside_bulk(place: Place, bulk_bytes: int, num_exchanges: int) -> dict[str, list[float]]:
    """Return the seconds of exchanges: alone, beside a bulk transfer that gives way, and beside one that does not."""
    network = place.network()
    queue = BulkQueue(network)
    foreground = network.group(WORLD, "foreground", Priority.EXCHANGE)
    groups = {"alone": None, "queue": queue.group(WORLD, "bulk", Priority.MIGRATION), "naive": foreground}
    rows = torch.zeros(1 << 16)
    counts = [rows.numel() // 4] * 4
    seconds: dict[str, list[float]] = {}
    for name, group in groups.items():
        peer = (place.rank + 2) % 4
        foreground.barrier()
        tensors = torch.zeros(2, bulk_bytes, dtype=torch.uint8)
        pending = [] if group is None else [group.receive(tensors[0], peer), group.send(tensors[1], peer)]
        time.sleep(0.05)
        seconds[name] = []
        for _ in range(num_exchanges):
            begin_s = time.perf_counter()
            foreground.all_to_all(rows, counts, counts).wait()
            seconds[name].append(time.perf_counter() - begin_s)
            time.sleep(0.05)
        for each in pending:
            each.wait()
    queue.close()
    network.close()
    return seconds
