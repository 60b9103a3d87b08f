"""Process groups that PyTorch itself knows, for libraries that take no others: DeepEP, FSDP2."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import torch.distributed as dist
from torch._C._distributed_c10d import PrefixStore, Store

_distributed: Any = dist  # its functions have no complete types


def register_all_ranks(store: Store, rank: int, world_size: int, device_type: str, timeout_s: float) -> bool:
    """Make the group of all ranks that PyTorch wants to be there, NCCL on GPUs and gloo on CPUs; every rank must.

    Return whether it was made: one that is there already is somebody else's to end.
    """
    if _distributed.is_initialized():
        return False
    _distributed.init_process_group(
        "nccl" if device_type == "cuda" else "gloo",
        store=PrefixStore("registered", store),
        rank=rank,
        world_size=world_size,
        timeout=timedelta(seconds=timeout_s),
    )
    return True


def registered_process_group(ranks: tuple[int, ...]) -> object:
    """Return a new group of `ranks`; all its members call this alike, once all ranks are registered."""
    return _distributed.new_group(list(ranks), use_local_synchronization=True)


def forget_registered_process_groups() -> None:
    """End all of them."""
    _distributed.destroy_process_group()
