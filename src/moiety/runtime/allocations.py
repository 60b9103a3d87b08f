"""Allocations of a step: how many, and the most bytes that are taken at a time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar, cast

import torch
from torch.profiler import ProfilerActivity, profile

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

Result = TypeVar("Result")
_MEMORY = "[memory]"
"""The profiler's name for an event of the allocator."""


@dataclass(frozen=True, slots=True)
class Allocations:
    """What the allocator was asked for during a step."""

    count: int
    """Tensor allocations: requests to torch's allocator, whether it went to the system for them or not. Buffers that
    libraries take for themselves are not among them."""
    peak_bytes: int
    """Most bytes of tensors at a time, with what was held before the step began."""
    left_bytes: int
    """Bytes that the step took and did not let go of."""


def allocations_of(step: Callable[[], Result], held_bytes: int, device: torch.device) -> tuple[Result, Allocations]:
    """Return what `step` returns, and the allocations that it made; `held_bytes` of tensors are there before.

    The step must let go of none of those, whose sizes the profiler does not know, and of what it takes in the thread
    that calls: the profiler follows no other.
    On CPUs the allocator's events of `torch.profiler` are counted, on GPUs the counters of the caching allocator.
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before, taken_before = _requests(device), torch.cuda.memory_allocated(device)
        result = step()
        left = torch.cuda.memory_allocated(device) - taken_before
        return result, Allocations(_requests(device) - before, torch.cuda.max_memory_allocated(device), left)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        result = step()
    # `events()` of the profiler itself folds memory events into the ops that they happen in
    kineto: Any = cast("Any", profiled).profiler.kineto_results
    events = sorted((each for each in kineto.events() if each.name() == _MEMORY), key=lambda each: each.start_ns())
    sizes = [int(each.nbytes()) for each in events]
    taken = peak = 0
    for size in sizes:
        taken += size
        peak = max(peak, taken)
    return result, Allocations(sum(size > 0 for size in sizes), held_bytes + peak, taken)


def storage_bytes(tensors: Iterable[torch.Tensor]) -> int:
    """Return the bytes of the distinct storages of tensors."""
    storages = {each.untyped_storage().data_ptr(): each.untyped_storage().nbytes() for each in tensors}
    return sum(storages.values())


def _requests(device: torch.device) -> int:
    return int(cast("Any", torch.cuda.memory_stats(device))["allocation.all.allocated"])
