"""Experts dealt over the GPUs in a circle."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from moiety.placement.problem import PlacementProblem, SlotMap


def round_robin(problem: PlacementProblem) -> SlotMap:
    """Return the map with expert e on GPU e % G (vLLM's round_robin), and each GPU's copies after its own.

    The redundant slots of a GPU copy the experts of the GPUs after it, in order, so that none holds two copies of one.
    """
    experts, gpus = problem.num_experts, problem.num_gpus
    heads = min(experts, gpus)  # GPUs past the last expert copy those from the first on
    dealt = np.concatenate([np.arange(head, experts, gpus, dtype=np.int64) for head in range(heads)])
    start = np.searchsorted(dealt % gpus, np.arange(gpus, dtype=np.int64) % heads)  # where each GPU's own experts begin
    row = dealt[(start[:, None] + np.arange(problem.slots_per_gpu, dtype=np.int64)) % experts].reshape(-1)
    return np.tile(row, (problem.num_layers, 1))
