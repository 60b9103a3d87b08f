"""Ranks as real processes: a function run in each of them, over loopback or in the nodes of a two-tier network."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import time
import traceback
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing.connection import wait
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.distributed import TCPStore

from moiety.cluster.cluster import LinkTier
from moiety.runtime.comm.network import Network
from tests.two_tier import MASTER_PORT

if TYPE_CHECKING:
    from collections.abc import Callable, Collection
    from multiprocessing.connection import Connection

    from tests.two_tier import Node

PRELOADED = ["torch", "tests.ranks", "transformers.models.mixtral.modeling_mixtral", "moiety.runtime.model.load"]
"""What every rank would import for seconds, and so gets from the process that it is forked from."""
_CLONE_NEWNET = 0x4000_0000
_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True)
class Place:
    """Where a rank stands: which one it is, how many there are, how they are spread over nodes, where they meet."""

    rank: int
    num_ranks: int
    ranks_per_node: int
    store_host: str
    store_port: int
    has_store: bool
    """Whether this rank keeps the store."""

    @property
    def tiers(self) -> tuple[LinkTier, ...]:
        """The tier inside a node and, where there are several, the one between them."""
        node = LinkTier(name="node", num_gpus=self.ranks_per_node, bandwidth_bytes_per_s=1e9, per="gpu", latency_s=1e-5)
        network = LinkTier(
            name="network", num_gpus=self.num_ranks, bandwidth_bytes_per_s=25e6, per="node", latency_s=1e-4
        )
        return (node, network) if self.num_ranks > self.ranks_per_node else (node,)

    def network(self, **options: Any) -> Network:  # noqa: ANN401  # those of Network
        """Return this rank's network."""
        store = TCPStore(self.store_host, self.store_port, is_master=self.has_store, timeout=timedelta(seconds=60))
        return Network(
            rank=self.rank,
            store=store,
            **{"world_size": self.num_ranks, "tiers": self.tiers, "timeout_s": 60.0, **options},
        )


@dataclass(frozen=True)
class Outcome:
    """What became of a rank: the value its function returned, or the text of what it raised, or neither."""

    value: Any = None
    error: str | None = None
    exit_code: int | None = None
    """Of a process that ended without a word; negative: the signal that ended it."""


def run_ranks(
    function: Callable[..., Any],
    num_ranks: int,
    *arguments: object,
    nodes: tuple[Node, ...] = (),
    timeout_s: float = 60.0,
) -> list[Any]:
    """Return what `function(place, *arguments)` returns in each rank; the first that fails fails all."""
    outcomes = rank_outcomes(function, num_ranks, *arguments, nodes=nodes, timeout_s=timeout_s)
    for rank, outcome in enumerate(outcomes):
        if outcome.error is not None or outcome.exit_code is not None:
            raise AssertionError(f"rank {rank}: {outcome.error or f'ended with {outcome.exit_code}'}")
    return [outcome.value for outcome in outcomes]


def rank_outcomes(
    function: Callable[..., Any],
    num_ranks: int,
    *arguments: object,
    nodes: tuple[Node, ...] = (),
    timeout_s: float = 60.0,
    without: Collection[int] = (),
) -> list[Outcome]:
    """Return what became of every rank; those of `without` are not waited for, and ended when all others have."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    store = None if nodes else TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    ranks_per_node = num_ranks // len(nodes) if nodes else num_ranks
    processes = []
    readers: dict[Connection, int] = {}
    try:
        for rank in range(num_ranks):
            place = Place(
                rank,
                num_ranks,
                ranks_per_node,
                nodes[0].address if nodes else "127.0.0.1",
                store.port if store is not None else MASTER_PORT,
                has_store=store is None and rank == 0,
            )
            node = nodes[rank // ranks_per_node] if nodes else None
            reader, writer = context.Pipe(duplex=False)
            process = context.Process(target=_rank, args=(writer, node, os.getpid(), function, place, arguments))
            process.start()
            writer.close()
            processes.append(process)
            readers[reader] = rank
        return _collect(readers, processes, timeout_s, set(without))
    finally:
        for process in processes:
            process.kill()
        for process in processes:
            process.join()
            process.close()
        for reader in readers:
            reader.close()


def _collect(
    readers: dict[Connection, int], processes: list[Any], timeout_s: float, without: set[int]
) -> list[Outcome]:
    outcomes: dict[int, Outcome] = {}
    end_s = time.monotonic() + timeout_s
    awaited = {reader: rank for reader, rank in readers.items() if rank not in without}
    while awaited:
        ready = wait(list(awaited), timeout=max(0.0, end_s - time.monotonic()))
        for reader in ready:
            rank = awaited.pop(reader)
            try:
                outcomes[rank] = reader.recv()
            except EOFError:
                processes[rank].join()
                outcomes[rank] = Outcome(exit_code=processes[rank].exitcode)
            if outcomes[rank].error is not None:  # the others may wait for it in vain
                end_s = min(end_s, time.monotonic() + 10.0)
        if not ready:
            outcomes |= {rank: Outcome(error=f"was still running after {timeout_s} s") for rank in awaited.values()}
            break
    return [outcomes.get(rank, Outcome()) for rank in range(len(processes))]


def _rank(
    writer: Connection,
    node: Node | None,
    parent_pid: int,
    function: Callable[..., Any],
    place: Place,
    arguments: tuple[object, ...],
) -> None:
    _end_with(parent_pid)
    if node is not None:
        enter(node.namespace)
    torch.set_num_threads(1)
    try:
        outcome = Outcome(value=function(place, *arguments))
    except BaseException:  # noqa: BLE001  # whatever it was, the parent tells
        outcome = Outcome(error=traceback.format_exc())
    writer.send(outcome)
    writer.close()


def enter(namespace: str) -> None:
    """Move this process, which has one thread yet, into a network namespace."""
    libc = ctypes.CDLL(None, use_errno=True)
    with Path("/run/netns", namespace).open("rb") as file:
        if libc.setns(file.fileno(), _CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), f"cannot enter network namespace {namespace}")


def _end_with(parent_pid: int) -> None:
    # The parent of a forked process is the fork server, which ends with the process that started it.
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if not Path(f"/proc/{parent_pid}").exists():
        os._exit(1)
