"""The ranks that keep experts, as a placement problem of their own."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from moiety.control.health import speeds
from moiety.placement.metrics import gpu_loads
from moiety.placement.problem import PlacementProblem
from moiety.placement.recovery import EMPTY

if TYPE_CHECKING:
    from moiety.control.state import State
    from moiety.placement.migration.cost import CopyLinks
    from moiety.placement.problem import Loads, SlotMap


def is_covered(state: State) -> bool:
    """Return whether the working ranks' slots are all known and hold every expert of every layer."""
    held = state.slot_map[:, state.ranks.working]
    if not state.ranks.working.any() or (held == EMPTY).any():
        return False
    if not len(held):
        return True
    seen = np.zeros((len(held), state.deployment.num_experts), dtype=np.bool_)
    seen[np.arange(len(held), dtype=np.int64)[:, None], held.reshape(len(held), -1)] = True
    return bool(seen.all())


def working_map(state: State) -> SlotMap:
    """Return the working ranks' slots, [layers, slots], ranks in order."""
    held = state.slot_map[:, state.ranks.working]
    return held.reshape(len(held), -1)


def working_problem(state: State, shares: Loads) -> PlacementProblem:
    """Return the problem of placing shares [windows, layers, experts] on the working ranks at their speeds.

    Nodes that have lost some ranks are not like the others: then no node is told apart.
    """
    working = state.ranks.working
    count = int(working.sum())
    return PlacementProblem(
        counts=shares,
        num_gpus=count,
        num_nodes=_even_nodes(state) or 1,
        num_slots=count * state.slot_map.shape[2],
        gpu_speed=speeds(state)[working],
    )


def working_links(state: State) -> CopyLinks:
    """Return the links that copies take; where nodes are not told apart, each is taken to cross the network."""
    links = state.deployment.links
    return links if _even_nodes(state) else replace(links, node_bytes_per_s=links.network_bytes_per_s)


def relative_loads(problem: PlacementProblem, slot_map: SlotMap) -> Loads:
    """Return each GPU's load over its speed, relative to the mean, [windows, layers, GPUs]."""
    loads: Loads = gpu_loads(problem, slot_map) * problem.num_gpus / problem.speed()
    return loads


def _even_nodes(state: State) -> int:
    """Return the nodes that have working ranks, where all of them have equally many; else 0."""
    each = state.ranks.working.reshape(-1, state.deployment.ranks_per_node).sum(axis=1)
    used = each[each > 0]
    return len(used) if len(used) and used.min() == used.max() else 0
