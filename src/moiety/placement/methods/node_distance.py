"""Distances between nodes as the solvers take them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from moiety.placement.problem import Loads


def mean_one(distance: Loads | None, num_nodes: int) -> Loads:
    """Return the distances between different nodes with mean 1, [nodes, nodes]; all 1 where there are none."""
    if distance is None or not distance.any():
        return 1.0 - np.eye(num_nodes)
    return distance * (num_nodes * (num_nodes - 1) / distance.sum())


def is_uneven(distance: Loads) -> bool:
    """Return whether the distances between different nodes differ, [nodes, nodes]."""
    between = distance[~np.eye(len(distance), dtype=np.bool_)]
    return bool((np.abs(between - 1.0) > 1e-12).any())  # noqa: PLR2004 - rounding
