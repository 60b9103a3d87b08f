"""A group over PyTorch's gloo beside one of ours: a function that each rank runs."""

from __future__ import annotations

import os
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import torch
from torch.distributed import ProcessGroupGloo, TCPStore

from moiety.runtime.comm.mesh import Mesh
from moiety.runtime.comm.priority import Priority
from moiety.runtime.comm.torch_group import TorchGroup

if TYPE_CHECKING:
    from moiety.runtime.comm.group import Group
    from tests.ranks import Place

WORLD = (0, 1, 2)


def collectives(place: Place) -> None:
    """Every operation gives the same over either group; values are whole, so that the order of a sum is no matter."""
    network = place.network()
    ours = network.group(WORLD, "ours", Priority.REDUCTION)
    store = TCPStore(place.store_host, place.store_port, is_master=False)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    mesh = Mesh("theirs", network.connect(WORLD, "theirs", Priority.REDUCTION), network.watch, lambda _: None)
    ledger = network.ledger(WORLD, "theirs", Priority.REDUCTION)
    process_group = ProcessGroupGloo(store, place.rank, 3, timedelta(seconds=30))
    theirs = TorchGroup(WORLD, place.rank, mesh, ledger, "cpu", process_group, network.watch)
    for dtype in (torch.float32, torch.bfloat16):
        tensor = torch.randint(-30, 30, (6, 5), generator=torch.Generator().manual_seed(place.rank)).to(dtype)
        for name, result in results(theirs, tensor).items():
            assert torch.equal(result, results(ours, tensor)[name]), name
        room = torch.empty_like(tensor)
        pending = [theirs.send(tensor, (place.rank + 1) % 3), theirs.receive(room, (place.rank - 1) % 3)]
        for each in pending:
            each.wait()
        assert torch.equal(room, theirs.all_gather(tensor)[place.rank - 1])
    theirs.barrier()
    network.close()


def results(group: Group, tensor: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return what every operation gives of this rank's `tensor` [6, 5]."""
    sent, received = [[1, 2, 3], [0, 0, 6], [4, 2, 0]][group.index], [[1, 0, 4], [2, 0, 2], [3, 6, 0]][group.index]
    return {
        "all_reduce": group.all_reduce(tensor.clone()),
        "strided all_reduce": group.all_reduce(tensor.clone().t()),
        "all_gather": group.all_gather(tensor),
        "reduce_scatter": group.reduce_scatter(tensor),
        "all_to_all": group.all_to_all(tensor, sent, received).wait(),
        "broadcast": group.broadcast(tensor.clone(), 2),
        "counts": group.exchange_counts(torch.full((3, 2), group.index)),
        "objects": torch.tensor(group.gather_objects(group.index)),
    }


def library_group(place: Place) -> float:
    """Return the sum of 1, 2, ... over a group that PyTorch knows; the last rank is in none."""
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    network = place.network()
    total = torch.full((1,), place.rank + 1.0)
    if place.rank < place.num_ranks - 1:
        group: Any = network.library_group(tuple(range(place.num_ranks - 1)))
        torch.distributed.all_reduce(total, group=group)
    else:
        network.library_group((place.rank,))
    network.group(tuple(range(place.num_ranks)), "law", Priority.REDUCTION).barrier()
    network.close()
    return float(total)
