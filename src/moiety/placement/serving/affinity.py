"""What if each sequence lived on the node that suits it: the traffic left after its first tokens chose its home."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from moiety.placement.serving.rule import serve_columns, serving_table

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from moiety.placement.problem import Loads, PlacementProblem, SlotMap
    from moiety.placement.serving.rule import Indices, Integers, ServingTable

FIRST_TOKENS = 32
"""Tokens of a sequence that choose its home."""
MAX_SERVED = 1_000_000
"""(layer, token, home) of later tokens that are served to tell, and twice as many of the first ones; where there are
more, fewer sequences are taken and fewer of their later tokens, at equal distances."""
_NODES_AT_ONCE = 8
"""Beyond so many nodes serving a token takes longer in proportion, and that much fewer are served."""
_CHUNK_TOKENS = 16_384


@dataclass(frozen=True, slots=True)
class AffinityTraffic:
    """Remote nodes per token and layer with homes by sequence, beside those of the same tokens with uniform homes."""

    remote_nodes: float
    uniform_remote_nodes: float
    num_tokens: int
    """Later tokens that were served, none of those that chose."""
    num_sequences: int


def sequence_affinity(
    problem: PlacementProblem, slot_map: SlotMap, sequence: Integers, *, max_served: int = MAX_SERVED
) -> AffinityTraffic | None:
    """Return the traffic when each sequence's home is the node that serves its first 32 tokens with least distance.

    `sequence` [tokens] is the sequence of each token of the problem's trace, in order. Nodes take equally many
    sequences, give or take one: the sequences choose in the order of what their second choice would cost them. Tokens
    after a sequence's first 32 are served by the rule of `rule.serve`. None where there are none, or where there are
    too many nodes to serve a sequence from each.
    """
    assert problem.topk is not None
    per_layer = max_served * _NODES_AT_ONCE // max(problem.num_nodes, _NODES_AT_ONCE)
    per_layer //= problem.topk.shape[0] * problem.num_nodes
    tokens, of = _of_some(sequence, 2 * per_layer // FIRST_TOKENS)
    early = _position(of) < FIRST_TOKENS
    late = np.flatnonzero(~early)
    if late.size == 0:
        return None
    if late.size > per_layer:
        late = late[np.arange(per_layer) * late.size // per_layer]
    cost, _ = _reached(problem, slot_map, tokens[early])
    by_sequence = np.stack([np.bincount(of[early], row).astype(np.float64) for row in cost], axis=1)
    home = even_homes(by_sequence)[of[late]]
    _, remote = _reached(problem, slot_map, tokens[late])
    return AffinityTraffic(
        remote_nodes=float(remote[home, np.arange(late.size)].mean()),
        uniform_remote_nodes=float(remote.mean()),
        num_tokens=int(late.size),
        num_sequences=len(by_sequence),
    )


def _of_some(sequence: Integers, most: int) -> tuple[Indices, Indices]:
    """Return the tokens of at most so many sequences, at equal distances, and the number of each one's sequence."""
    names, of = np.unique(sequence, return_inverse=True)
    if names.size <= most:
        return np.arange(of.size), of
    number = np.full(names.size, -1)
    number[np.arange(most) * names.size // max(most, 1)] = np.arange(most)
    tokens = np.flatnonzero(number[of] >= 0)
    return tokens, number[of[tokens]]


def even_homes(cost: Loads) -> Indices:
    """Return a node for each row of `cost` [sequences, nodes], equally many rows a node, give or take one: [sequences].

    Who would lose most by the second choice chooses first, the earlier row among equals.
    """
    num_rows, num_nodes = cost.shape
    ordered = np.sort(cost, axis=1)
    regret = ordered[:, 1] - ordered[:, 0] if num_nodes > 1 else ordered[:, 0]
    base, extra = divmod(num_rows, num_nodes)
    room = np.full(num_nodes, base + 1)
    homes = np.zeros(num_rows, dtype=np.int64)
    for row in np.argsort(-regret, kind="stable"):
        node = int(np.argmin(np.where(room > (0 if extra else 1), cost[row], np.inf)))
        room[node] -= 1
        extra -= int(room[node] == 0)
        homes[row] = node
    return homes


def _position(of: NDArray[np.int64]) -> Indices:
    """Return each token's place in its sequence, [tokens], for the sequences' numbers `of` [tokens]."""
    order = np.argsort(of, kind="stable")
    counts = np.bincount(of)
    place = np.empty_like(of)
    place[order] = np.arange(of.size) - np.repeat(np.cumsum(counts) - counts, counts)
    return place


def _reached(problem: PlacementProblem, slot_map: SlotMap, tokens: Indices) -> tuple[Loads, Loads]:
    """Return distance to and number of the remote nodes from each home, means over layers, [nodes, tokens]."""
    assert problem.topk is not None
    distance = np.zeros((problem.num_nodes, tokens.size))
    remote = np.zeros_like(distance)
    for topk, slots in zip(problem.topk, slot_map, strict=True):
        table = serving_table(
            slots,
            num_experts=problem.num_experts,
            num_gpus=problem.num_gpus,
            num_nodes=problem.num_nodes,
            node_distance=problem.node_distance,
        )
        for first in range(0, tokens.size, _CHUNK_TOKENS):
            part = slice(first, first + _CHUNK_TOKENS)
            columns = np.ascontiguousarray(topk[tokens[part]].T, dtype=np.int64)
            for home in range(problem.num_nodes):
                away, cost = _from_home(problem, table, columns, tokens[part], home)
                remote[home, part] += away
                distance[home, part] += cost
    return distance / slot_map.shape[0], remote / slot_map.shape[0]


def _from_home(
    problem: PlacementProblem, table: ServingTable, columns: Integers, tokens: Indices, home: int
) -> tuple[NDArray[Any], Loads]:
    """Return the number of remote nodes of tokens from one home and the distance to them, each [tokens]."""
    slots = serve_columns(table, columns, np.full_like(tokens, home), tokens)
    reached = np.zeros((tokens.size, problem.num_nodes), dtype=np.bool_)
    reached[np.arange(tokens.size), slots // problem.slots_per_node] = True
    reached[:, home] = False
    away = reached.sum(axis=1)
    return away, away.astype(np.float64) if problem.node_distance is None else reached @ problem.node_distance[home]
