"""Ranks that lose each other: functions that each rank runs, which tell how long it took them to see it."""

from __future__ import annotations

import os
import signal
import threading
import time
from typing import TYPE_CHECKING

import torch

from moiety.runtime.comm.bulk import BulkQueue
from moiety.runtime.comm.peer_lost import PeerLost
from moiety.runtime.comm.priority import Priority

if TYPE_CHECKING:
    from collections.abc import Callable

    from moiety.runtime.comm.group import Group
    from tests.ranks import Place

WORLD = (0, 1, 2)
LOST = 1


def seconds_until_lost(wait: Callable[[], object]) -> tuple[float, PeerLost]:
    """Return how long `wait` took to raise PeerLost, and what it raised."""
    begin_s = time.perf_counter()
    try:
        wait()
    except PeerLost as lost:
        return time.perf_counter() - begin_s, lost
    raise AssertionError("the wait ended as if nothing had happened")


def operation(name: str, group: Group) -> Callable[[], object]:
    """Return an operation of a group that every member must take part in."""
    counts = [30_000] * group.size
    return {
        "all_reduce": lambda: group.all_reduce(torch.zeros(5)),
        "large all_reduce": lambda: group.all_reduce(torch.zeros(1_000_000)),
        "all_to_all": lambda: group.all_to_all(torch.zeros(sum(counts), 16), counts, counts).wait(),
        "receive": lambda: group.receive(torch.zeros(5), LOST).wait(),
    }[name]


def lose_a_killed_peer(place: Place, name: str, after_s: float) -> tuple[float, int | None]:
    """Wait for a rank that is killed after a while; return the seconds it took, and whom the error names."""
    network = place.network()
    group = network.group(WORLD, "fated", Priority.REDUCTION)
    group.barrier()
    if place.rank == LOST:
        time.sleep(after_s)
        os.kill(os.getpid(), signal.SIGKILL)
    took_s, lost = seconds_until_lost(operation(name, group))
    network.close()
    return took_s, lost.rank


def lose_a_stopped_peer(place: Place, name: str, timeout_s: float) -> tuple[float, int | None, float, str]:
    """Wait for a rank that is stopped; return the seconds it took, and whom the error names, its seconds, its text."""
    network = place.network(timeout_s=timeout_s)
    group = network.group(WORLD, "fated", Priority.REDUCTION)
    group.barrier()
    if place.rank == LOST:
        os.kill(os.getpid(), signal.SIGSTOP)
    took_s, lost = seconds_until_lost(operation(name, group))
    network.close()
    return took_s, lost.rank, lost.waited_s, str(lost)


def stop_on_abort(place: Place, name: str) -> tuple[float, str]:
    """Wait for a rank that never comes, until another thread says stop; return the seconds from then, and the text."""
    network = place.network()
    group = network.group(WORLD, "fated", Priority.REDUCTION)
    if place.rank == LOST:
        time.sleep(60)
    said_s: list[float] = []

    def say_stop() -> None:
        said_s.append(time.perf_counter())
        network.abort("the launcher said stop")

    timer = threading.Timer(0.5, say_stop)
    timer.start()
    _, lost = seconds_until_lost(operation(name, group))
    took_s = time.perf_counter() - said_s[0]
    timer.join()
    again_s, _ = seconds_until_lost(operation(name, group))
    assert again_s < 1.0, "after the stop nothing waits any more"
    network.close()
    return took_s, str(lost)


def lose_the_receiver_of_a_bulk_transfer(place: Place) -> tuple[float, int | None]:
    """Send in chunks to a rank that is killed meanwhile; return the seconds it took, and whom the error names."""
    network = place.network()
    queue = BulkQueue(network)
    bulk = queue.group((0, 1), "fated", Priority.MIGRATION)
    if place.rank == LOST:
        bulk.receive(torch.zeros(100), 0).wait()
        os.kill(os.getpid(), signal.SIGKILL)
    bulk.send(torch.zeros(100), LOST).wait()
    took_s, lost = seconds_until_lost(bulk.send(torch.zeros(10_000_000), LOST).wait)
    again_s, _ = seconds_until_lost(bulk.send(torch.zeros(10), LOST).wait)
    assert again_s < 1.0, "what is lost stays lost"
    queue.close()
    network.close()
    return took_s, lost.rank


def come_late(place: Place) -> list[object]:
    """Make groups in an order that lets rank 0 wait for one while others are already in the next."""
    network = place.network()
    time.sleep(0.3 * (2 - place.rank))
    pair = network.group((0, 2), "pair", Priority.REDUCTION) if place.rank != LOST else None
    world = network.group(WORLD, "world", Priority.REDUCTION)
    other = network.group(WORLD, "world", Priority.EXCHANGE)
    assert network.group(WORLD, "world", Priority.REDUCTION) is world
    if pair is not None:
        assert pair.gather_objects(place.rank) == [0, 2]
    values = world.gather_objects(place.rank) + other.gather_objects(-place.rank)
    network.close()
    return values


def meet_again(place: Place) -> list[list[object]]:
    """Make a network anew over the same store, as the next generation, while the first is still there."""
    networks = [place.network(generation=generation) for generation in range(2)]
    groups = [each.group(WORLD, "world", Priority.REDUCTION) for each in networks]
    values = [group.gather_objects((place.rank, number)) for number, group in enumerate(groups)]
    for each in networks:
        each.close()
    return values


def disagree(place: Place) -> str:
    """Sum tensors of different sizes."""
    network = place.network()
    group = network.group((0, 1), "sum", Priority.REDUCTION)
    try:
        group.all_reduce(torch.zeros(10 + place.rank))
    except AssertionError as error:
        return str(error)
    finally:
        network.close()
    return ""
