"""What each copy of an expert is worth for traffic where it is, so that migration can weigh it beside balance."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from moiety.placement.methods.joint import MAX_NODES
from moiety.placement.methods.node_distance import is_uneven, mean_one
from moiety.placement.methods.token_sample import token_sample

if TYPE_CHECKING:
    from moiety.placement.problem import Loads, PlacementProblem, SlotMap

_RECORDS = 4096


def holding_cost(problem: PlacementProblem, slot_map: SlotMap) -> Loads | None:
    """Return the cost of a copy of each expert on each node, [layers, experts, nodes], as `migrate` takes it; all <= 0.

    It is what the copy saves of the distance to remote nodes while all other experts stay as in `slot_map`
    [layers, slots], in the unit in which the joint solver weighs that against the load of the fullest GPU. Differences
    are exact for the move of one only copy, and first-order for others. None without tokens, or where there is no
    other node, or more of them than the solver takes.
    """
    if problem.topk is None or not 1 < problem.num_nodes <= MAX_NODES:
        return None
    from moiety.placement.methods.kernels import gain_tables, uneven_gain_tables  # noqa: PLC0415 - compiled only where tokens are known
    from moiety.placement.methods.local_search import PRICE  # noqa: PLC0415 - as above

    distance = mean_one(problem.node_distance, problem.num_nodes)
    shape = (problem.num_experts, problem.num_nodes)
    node = np.arange(problem.num_slots, dtype=np.int64) // problem.slots_per_node
    cost = np.empty((problem.num_layers, *shape))
    for layer, slots in enumerate(slot_map):
        held = np.zeros(shape, dtype=np.bool_)
        held[slots, node] = True
        bits = (held << np.arange(problem.num_nodes, dtype=np.int64)).sum(axis=1)
        sample = token_sample(problem.topk[layer], problem.num_experts, problem.num_nodes, _RECORDS)
        add, rem, served = np.zeros(shape), np.zeros(shape), np.zeros(shape)
        both = np.zeros((*shape, problem.num_nodes))
        fill = uneven_gain_tables if is_uneven(distance) else gain_tables
        fill(bits, sample.experts, sample.home, sample.weight, distance, add, rem, both, served)
        # An only copy that moves from a to n: rem[a] - add[n] - both[a, n]. Of several, one goes or one comes.
        lone = held.sum(axis=1) == 1
        only = add + both[np.arange(shape[0], dtype=np.int64), held.argmax(axis=1)]
        cost[layer] = -np.where(lone[:, None], only, np.where(held, rem, add)) / PRICE
    return cost
