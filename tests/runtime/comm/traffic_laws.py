"""What a rank counts of known operations: a function that each rank runs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from moiety.cluster.cluster import LinkTier
from moiety.runtime.comm.bulk import BulkQueue
from moiety.runtime.comm.priority import Priority

if TYPE_CHECKING:
    from tests.ranks import Place

WORLD = (0, 1, 2, 3)
TIERS = (
    LinkTier(name="pair", num_gpus=2, bandwidth_bytes_per_s=1e9, per="gpu", latency_s=0),
    LinkTier(name="all", num_gpus=4, bandwidth_bytes_per_s=1e9, per="gpu", latency_s=0),
)


def counted(place: Place, num_items: int) -> dict[str, dict[str, int]]:
    """Return the bytes by tier that this rank counts of one operation each, over all four ranks, by its name."""
    network = place.network(tiers=TIERS)
    traffic = network.traffic
    counts: dict[str, dict[str, int]] = {}

    def note(name: str, priority: Priority) -> None:
        snapshot = traffic.snapshot()[priority.name.lower()]
        assert snapshot["num_transfers"] == 1, name
        counts[name] = snapshot["sent_bytes"]
        others = [each for key, each in traffic.snapshot().items() if key != priority.name.lower()]
        assert not any(sum(each["sent_bytes"].values()) for each in others), name
        traffic.reset()

    group = network.group(WORLD, "counted", Priority.REDUCTION)
    group.all_reduce(torch.zeros(num_items))
    note("all_reduce", Priority.REDUCTION)
    group.all_gather(torch.zeros(num_items))
    note("all_gather", Priority.REDUCTION)
    group.reduce_scatter(torch.zeros(4 * num_items))
    note("reduce_scatter", Priority.REDUCTION)
    group.broadcast(torch.zeros(num_items), 1)
    note("broadcast", Priority.REDUCTION)
    group.exchange_counts(torch.zeros(4, 7, dtype=torch.int64))
    note("exchange_counts", Priority.REDUCTION)
    exchange = network.group(WORLD, "counted", Priority.EXCHANGE)
    sent = [5 * place.rank + other for other in WORLD]
    received = [5 * other + place.rank for other in WORLD]
    exchange.all_to_all(torch.zeros(sum(sent), 3, dtype=torch.bfloat16), sent, received).wait()
    note("all_to_all", Priority.EXCHANGE)
    queue = BulkQueue(network, chunk_bytes=1000)
    bulk = queue.group(WORLD, "counted", Priority.MIGRATION)
    bulk.broadcast(torch.zeros(num_items), 1).wait()
    note("bulk broadcast", Priority.MIGRATION)
    queue.close()
    network.close()
    return counts
