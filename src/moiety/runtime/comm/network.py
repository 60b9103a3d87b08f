"""Network: what one rank process has of the others: its groups, its counts of traffic, its way to stop."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

import torch
from torch._C._distributed_c10d import PrefixStore, Store

from moiety.runtime.comm.group import Group
from moiety.runtime.comm.ledger import Ledger
from moiety.runtime.comm.mesh import Mesh
from moiety.runtime.comm.progress import Progress
from moiety.runtime.comm.registered_group import (
    forget_registered_process_groups,
    register_all_ranks,
    registered_process_group,
)
from moiety.runtime.comm.rendezvous import Rendezvous, address_towards
from moiety.runtime.comm.torch_group import TorchGroup, gloo_process_group, nccl_process_group
from moiety.runtime.comm.traffic import Traffic, tier_between
from moiety.runtime.comm.watch import Watch

if TYPE_CHECKING:
    from moiety.cluster.cluster import LinkTier
    from moiety.runtime.comm.link import Link
    from moiety.runtime.comm.priority import Priority
    from moiety.runtime.comm.torch_group import ProcessGroup
    from moiety.runtime.comm.traffic import Observer
    from moiety.runtime.comm.transport import Transport


class Network:
    """One rank among `world_size`; all of them make it with the same store, tiers and generation.

    `timeout_s` is how long a peer may be silent in any wait, `connect_s` (as long, where it is None) how long a
    connection to one that listens may take. `address` is the one this rank listens on: by default the
    one that leads to the store's host. A later `generation` over the same store does not meet the earlier one.
    `transport` carries tensors between CPUs: links of our own, or PyTorch's gloo. Between GPUs it is NCCL;
    `deep_ep` has exchanges use that library.
    """

    def __init__(  # noqa: PLR0913  # what a process among others must know
        self,
        *,
        rank: int,
        world_size: int,
        store: Store,
        tiers: tuple[LinkTier, ...],
        device: torch.device = torch.device("cpu"),  # noqa: B008  # a constant
        timeout_s: float = 300.0,
        connect_s: float | None = None,
        generation: int = 0,
        observer: Observer | None = None,
        address: str | None = None,
        transport: Transport = "sockets",
    ) -> None:
        assert 0 <= rank < world_size, f"rank {rank} of {world_size}"
        assert tiers, "bytes are counted by tier, so there must be one"
        self.rank = rank
        self.world_size = world_size
        self.device = device
        self.traffic = Traffic(tuple(tier.name for tier in tiers))
        self.observer = observer
        self.watch = Watch(timeout_s)
        self._tiers = tiers
        self._store = PrefixStore(f"moiety/comm/{generation}", store)
        self._address = address or address_towards(store)
        self.transport: Transport = transport
        self._rendezvous = Rendezvous(rank, self._store, self._address, self.watch, connect_s or timeout_s)
        self._progress = Progress(f"progress of rank {rank}")
        self._groups: dict[tuple[tuple[int, ...], str, Priority], Group] = {}
        self._foreground: list[Mesh] = []
        self._links: list[Link] = []
        self._process_groups: list[ProcessGroup] = []
        self._has_registered = False
        """Whether this network made the group of all ranks that PyTorch knows."""

    def group(self, ranks: tuple[int, ...], label: str, priority: Priority) -> Group:
        """Return the group of `ranks`, this one among them; all members call it with the same arguments.

        It has connections of its own, made at the first call, so that its messages queue behind nobody else's.
        """
        key = (ranks, label, priority)
        if key not in self._groups:
            mesh = Mesh(label, self.connect(ranks, label, priority), self.watch, self._progress.help)
            if not priority.is_bulk:
                self._foreground.append(mesh)
            self._groups[key] = self._make(ranks, label, priority, mesh)
        return self._groups[key]

    def _make(self, ranks: tuple[int, ...], label: str, priority: Priority, mesh: Mesh) -> Group:
        index, ledger = ranks.index(self.rank), self.ledger(ranks, label, priority)
        if len(ranks) == 1 or (self.device.type == "cpu" and self.transport != "gloo"):
            return Group(ranks, index, mesh, ledger, gpus_per_node=self._tiers[0].num_gpus)
        store = PrefixStore(f"{label} {int(priority)} {ranks}", self._store)
        if self.device.type == "cuda":
            process_group = nccl_process_group(store, index, len(ranks), priority, self.watch.timeout_s)
        else:
            process_group = gloo_process_group(store, index, len(ranks), self._address, self.watch.timeout_s)
        self._process_groups.append(process_group)
        return TorchGroup(ranks, index, mesh, ledger, self.device.type, process_group, self.watch)

    def library_group(self, ranks: tuple[int, ...]) -> object:
        """Return a process group of `ranks` that PyTorch itself knows, for libraries that take no other."""
        self.register_all_ranks()
        return registered_process_group(ranks)

    def register_all_ranks(self) -> None:
        """Have PyTorch know the group of all ranks, for libraries that make their own groups; every rank must."""
        if not self._has_registered:
            self._has_registered = register_all_ranks(
                self._store, self.rank, self.world_size, self.device.type, self.watch.timeout_s
            )

    def connect(self, ranks: tuple[int, ...], label: str, priority: Priority) -> dict[int, Link]:
        """Return new links to the other ones of `ranks`, by place; all of them call it with the same arguments."""
        assert self.rank in ranks, f"rank {self.rank} is not in group {label!r} of {ranks}"
        assert len(set(ranks)) == len(ranks), f"a rank stands twice in group {label!r} of {ranks}"
        key = f"{label} {int(priority)} {ranks}"
        links = self._rendezvous.connect(ranks, label, key, is_timed=self.observer is not None)
        self._links += links.values()
        return links

    def ledger(self, ranks: tuple[int, ...], label: str, priority: Priority) -> Ledger:
        """Return what the transfers of a group are counted in."""
        tiers = tuple(tier_between(self._tiers, self.rank, peer) for peer in ranks)
        return Ledger(label, priority, tiers, ranks.index(self.rank), self.traffic, self.observer)

    def is_foreground_moving(self) -> bool:
        """Return whether a transfer of the urgent classes is under way, or bytes of one still wait in the kernel."""
        return any(mesh.is_moving() or mesh.is_draining for mesh in self._foreground)

    def abort(self, reason: str) -> None:
        """Let every wait of this rank, in any thread, end with PeerLost now; the peers see the connections end."""
        self.watch.stop(reason)
        for link in self._links:
            try:
                link.socket.shutdown(socket.SHUT_RDWR)
            except OSError:  # the other end was quicker
                continue
        for process_group in self._process_groups:
            process_group.abort()

    def close(self) -> None:
        """End the threads and the connections."""
        if self._has_registered:
            forget_registered_process_groups()
        self._progress.close()
        self._rendezvous.close()
        for process_group in self._process_groups:
            process_group.shutdown()
        for link in self._links:
            link.socket.close()
