"""The linear placement as a map of slots."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from moiety.placement.linear import linear_row

if TYPE_CHECKING:
    from moiety.placement.problem import PlacementProblem, SlotMap


def linear(problem: PlacementProblem) -> SlotMap:
    """Return the map with the experts in order over the GPUs, and each GPU's copies after its own."""
    row = linear_row(problem.num_experts, problem.num_slots, problem.num_gpus)
    return np.tile(np.array(row, dtype=np.int64), (problem.num_layers, 1))
