"""Process groups that PyTorch itself knows, for libraries that take no others: DeepEP, FSDP2."""

from __future__ import annotations

from typing import Any

import torch.distributed as dist
from torch._C._distributed_c10d import PrefixStore, Store

_distributed: Any = dist  # its functions have no complete types


def registered_process_group(
    store: Store, rank: int, world_size: int, ranks: tuple[int, ...], device_type: str
) -> object:
    """Return a new group of `ranks`, NCCL's on GPUs and gloo's on CPUs; all its members call this alike.

    The first call makes the group of all ranks, which PyTorch wants to be there: every rank must make one.
    """
    if not _distributed.is_initialized():
        _distributed.init_process_group(
            "nccl" if device_type == "cuda" else "gloo",
            store=PrefixStore("registered", store),
            rank=rank,
            world_size=world_size,
        )
    return _distributed.new_group(list(ranks), use_local_synchronization=True)


def forget_registered_process_groups() -> None:
    """End all of them, where there are any."""
    if _distributed.is_initialized():
        _distributed.destroy_process_group()
