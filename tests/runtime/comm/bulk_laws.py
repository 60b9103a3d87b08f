"""What bulk transfers must give: functions that each rank runs."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import torch

from moiety.runtime.comm.bulk import BulkQueue
from moiety.runtime.comm.priority import Priority

if TYPE_CHECKING:
    from tests.ranks import Place

CHUNK_BYTES = 4096
COMPUTED_S = 0.7
SIZES = (0, 1, CHUNK_BYTES, CHUNK_BYTES + 1, 50 * CHUNK_BYTES - 3)


def transfers(place: Place) -> None:
    """Send, receive and broadcast bring every tensor whole, many at once, of several classes, in whatever order."""
    network = place.network()
    queue = BulkQueue(network, chunk_bytes=CHUNK_BYTES)
    world = tuple(range(place.num_ranks))
    groups = [queue.group(world, "law", priority) for priority in (Priority.CHECKPOINT, Priority.PREFETCH)]
    pair = queue.group((2, 1), "law", Priority.MIGRATION) if place.rank in (1, 2) else None
    expected: list[tuple[torch.Tensor, torch.Tensor]] = []
    pending = []

    def tensor(source: int, size: int, dtype: torch.dtype = torch.uint8) -> torch.Tensor:
        generator = torch.Generator().manual_seed(1000 * source + size)
        return torch.randint(0, 255, (size,), generator=generator).to(dtype)

    for group in groups:
        for size in SIZES:
            for other in world:
                if other != place.rank:
                    pending.append(group.send(tensor(place.rank, size), other))
                    expected.append((tensor(other, size), room := torch.empty(size, dtype=torch.uint8)))
                    pending.append(group.receive(room, other))
            for source in world:
                own = tensor(source, size, torch.bfloat16)
                expected.append((own, room := own.clone() if source == place.rank else torch.empty_like(own)))
                pending.append(group.broadcast(room, source))
    if pair is not None:
        own = tensor(place.rank, 9999)
        pending.append(pair.send(own, 1 - pair.index))
        expected.append((tensor(3 - place.rank, 9999), room := torch.empty_like(own)))
        pending.append(pair.receive(room, 1 - pair.index))
    for each in reversed(pending):
        each.wait()
        assert each.done()
    for wanted, received in expected:
        assert torch.equal(wanted, received)
    queue.close()
    network.close()


def held_back(place: Place, held: int) -> int:
    """Send in chunks from rank 0 to rank 1 while rank `held` is in an exchange that rank 2 does not join yet.

    Return the bytes that rank 1 has received until rank 2 joins.
    """
    network = place.network()
    queue = BulkQueue(network, chunk_bytes=CHUNK_BYTES)
    bulk = queue.group((0, 1), "bulk", Priority.MIGRATION) if place.rank < 2 else None
    foreground = network.group((held, 2), "foreground", Priority.EXCHANGE) if place.rank in (held, 2) else None
    control = network.group((0, 1, 2), "control", Priority.CHECKPOINT)  # a class that holds nothing back
    control.barrier()
    counts, rows = [1, 1], torch.ones(2, 8)
    exchange = foreground.all_to_all(rows, counts, counts) if foreground is not None and place.rank == held else None
    control.barrier()
    tensor = torch.full((10 * CHUNK_BYTES,), place.rank == 0, dtype=torch.uint8)
    pending = None
    if bulk is not None:
        pending = bulk.send(tensor, 1) if place.rank == 0 else bulk.receive(tensor, 0)
    time.sleep(0.4)
    received_bytes = int(tensor.sum())
    assert pending is None or not pending.done()
    control.barrier()
    if exchange is not None:
        exchange.wait()
    elif foreground is not None:
        foreground.all_to_all(rows, counts, counts).wait()
    if pending is not None:
        assert bool(pending.wait().all())
    control.barrier()
    queue.close()
    network.close()
    return received_bytes


def held_back_until_the_deadline(place: Place, timeout_s: float) -> float:
    """Send in chunks from rank 0 to rank 1 while rank 0 is in an exchange that rank 2 never joins.

    Return the seconds until all has arrived.
    """
    network = place.network(timeout_s=timeout_s if place.rank == 0 else 60.0)
    queue = BulkQueue(network, chunk_bytes=CHUNK_BYTES)
    bulk = queue.group((0, 1), "bulk", Priority.MIGRATION) if place.rank < 2 else None
    foreground = network.group((0, 2), "foreground", Priority.EXCHANGE) if place.rank != 1 else None
    control = network.group((0, 1, 2), "control", Priority.CHECKPOINT)
    control.barrier()
    begin_s = time.perf_counter()
    if place.rank == 0 and foreground is not None:
        foreground.all_to_all(torch.ones(2, 8), [1, 1], [1, 1])
    if bulk is not None:
        tensor = torch.zeros(10 * CHUNK_BYTES)
        (bulk.send(tensor, 1) if place.rank == 0 else bulk.receive(tensor, 0)).wait()
    took_s = time.perf_counter() - begin_s
    control.barrier()
    queue.close()
    network.close()
    return took_s


class Ends:
    """The observer that remembers how long every transfer took."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def waited(self, start_s: float, end_s: float, came_s: float) -> None:
        """Take no note of waits."""

    def transferred(
        self, name: str, priority: Priority, start_s: float, end_s: float, tier_bytes: tuple[int, ...]
    ) -> None:
        """Take note of a transfer."""
        del priority, tier_bytes
        self.seconds[name] = end_s - start_s


def end_while_computing(place: Place) -> dict[str, float]:
    """Start transfers, look away for a while, and return the seconds that they are said to have taken."""
    ends = Ends()
    network = place.network(observer=ends)
    queue = BulkQueue(network)
    bulk = queue.group((0, 1), "bulk", Priority.MIGRATION)
    control = network.group((0, 1), "control", Priority.REDUCTION)
    labels = {"small": 10, "large": 300_000}
    groups = {label: network.group((0, 1), label, Priority.EXCHANGE) for label in labels}
    control.barrier()
    pending = []
    for label, num_rows in labels.items():
        counts = [num_rows, num_rows]
        pending.append(groups[label].all_to_all(torch.zeros(2 * num_rows, 4), counts, counts))
    tensor = torch.zeros(1_000_000)
    pending.append(bulk.send(tensor, 1) if place.rank == 0 else bulk.receive(tensor, 0))
    time.sleep(COMPUTED_S)
    assert pending[-1].done(), "nothing holds it back while what has come waits to be taken"
    for each in pending:
        each.wait()
    queue.close()
    network.close()
    return {name: took_s for name, took_s in ends.seconds.items() if not name.startswith("control")}
