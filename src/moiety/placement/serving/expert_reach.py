"""Which experts bring tokens to a node from other nodes: a layer's traffic, expert by expert."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from moiety.placement.serving.rule import serve_columns, serving_table

if TYPE_CHECKING:
    from moiety.placement.problem import Loads, PlacementProblem
    from moiety.placement.serving.rule import Indices


def remote_shares(problem: PlacementProblem, slots: Indices, layer: int, *, cover: bool) -> Loads:
    """Return the share of a layer's tokens that reach each expert on each node from another, [experts, nodes].

    `slots` [slots] is the layer's row of a slot map. Homes are uniform, each token taken from every node. With `cover`
    copies are chosen by `rule.serve`, else evenly: token t by copy t mod copies, in the order of slots. The sum is
    the messages per token that leave their node under flat dispatch. The problem must have a trace, and every expert
    a slot.
    """
    assert problem.topk is not None
    nodes, per_node = problem.num_nodes, problem.slots_per_node
    columns = np.ascontiguousarray(problem.topk[layer].T, dtype=np.int64)
    token = np.arange(columns.shape[1], dtype=np.int64)
    reached = np.zeros((problem.num_experts, nodes))
    if not cover:
        copies = np.bincount(slots, minlength=problem.num_experts)
        by_expert = np.argsort(slots, kind="stable")
        serving = by_expert[(np.cumsum(copies) - copies)[columns] + token % copies[columns]]
        reached += _pairs(columns, serving // per_node, reached.shape) * (nodes - 1)
        return reached / (token.size * nodes)
    table = serving_table(
        slots,
        num_experts=problem.num_experts,
        num_gpus=problem.num_gpus,
        num_nodes=nodes,
        node_distance=problem.node_distance,
    )
    for home in range(nodes):
        from_home = _pairs(
            columns, serve_columns(table, columns, np.full_like(token, home), token) // per_node, reached.shape
        )
        from_home[:, home] = 0
        reached += from_home
    return reached / (token.size * nodes)


def _pairs(experts: Indices, nodes: Indices, shape: tuple[int, ...]) -> Loads:
    """Return how often each expert is served on each node, [experts, nodes]."""
    cells = (experts * shape[1] + nodes).ravel()
    return np.bincount(cells, minlength=shape[0] * shape[1]).reshape(shape).astype(np.float64)
