"""The serving rule: which copy of an expert serves a token."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from moiety.errors import InputError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Integers = NDArray[np.integer[Any]]
    Indices = NDArray[np.int64]

_CHUNK_TOKENS = 16_384
_MAX_BYTE = 255


@dataclass(frozen=True, slots=True, eq=False)
class ServingTable:
    """Where the copies of one layer's experts are, in the form in which the rule looks them up.

    Two copies of an expert on one GPU count as one, the first: a second one serves nobody.
    """

    held: NDArray[np.bool_]
    """Whether a node holds a copy of an expert, [experts, nodes]."""
    start: Indices
    """Where in `slots` the copies of an expert on a node begin, [experts, nodes]."""
    turns: Indices
    """GPUs of a node that hold a copy of an expert, [experts, nodes]."""
    slots: Indices
    """Slots by expert, then by GPU; one for each GPU that holds the expert."""
    nearness: NDArray[np.int32] | None
    """Rank of each node by its distance from home, farthest 0, [homes, nodes]; None where all are alike."""

    @property
    def num_nodes(self) -> int:
        """Nodes that the copies are spread over."""
        return self.held.shape[1]


def serving_table(
    slot_map_row: Integers,
    *,
    num_experts: int,
    num_gpus: int,
    num_nodes: int,
    node_distance: NDArray[np.float64] | None = None,
) -> ServingTable:
    """Return the look-up tables of one layer's slots (`slot_map_row`, the expert of each slot, [slots])."""
    row = np.asarray(slot_map_row, dtype=np.int64)
    gpus = np.arange(row.size) // (row.size // num_gpus)
    keys, slots = np.unique(row * num_gpus + gpus, return_index=True)
    edges = np.arange(num_experts * num_nodes + 1) * (num_gpus // num_nodes)
    start = np.searchsorted(keys, edges)
    turns = np.diff(start).reshape(num_experts, num_nodes)
    return ServingTable(
        held=turns > 0,
        start=start[:-1].reshape(num_experts, num_nodes),
        turns=turns,
        slots=slots.astype(np.int64),
        nearness=None if node_distance is None else _nearness(node_distance),
    )


def _nearness(node_distance: NDArray[np.float64]) -> NDArray[np.int32]:
    """Return the rank of each node's distance from home among the distances there, farthest lowest, [homes, nodes]."""
    ranks = [np.unique(-costs, return_inverse=True)[1].ravel() for costs in node_distance]
    return np.stack(ranks).astype(np.int32)


def serve(
    slot_map_row: Integers,
    topk: Integers,
    home: Integers,
    token: Integers,
    *,
    num_gpus: int,
    num_nodes: int,
    node_distance: NDArray[np.float64] | None = None,
) -> Indices:
    """Return the physical slot that serves each (token, expert) of a layer, [tokens, k].

    `slot_map_row` [slots] is the expert of each slot: slot p is on GPU `p // (slots / gpus)`, GPU g on node
    `g // (gpus / nodes)`. `topk` [tokens, k] names each token's experts, `home` [tokens] the node that it starts from,
    `token` [tokens] its index among the tokens that start from there. `node_distance` [nodes, nodes] is the cost of a
    row from node to node, None where all links are alike. For each token:

    1. Every expert with a copy on the home node is served on the home node.
    2. While an expert is unserved: take the node that holds copies of the most unserved experts. Among equals take the
       nearest to the home node (`node_distance[home]`); among equally near ones the first in the rotation, that with
       the least `(node - home - token) mod nodes`. That node serves every unserved expert of which it holds a copy.
    3. Within its node an expert is served by turns by the GPUs that hold a copy, in the order of GPUs: with c of them
       by number `(token mod nodes + token // nodes + home) mod c`. The turn goes on with each full rotation, so that
       no GPU is tied to the tokens that the rotation brings to its node. Of two copies on one GPU the first serves.

    So every (token, expert) is served by exactly one slot, and that slot holds the expert: work is conserved. Step 2 is
    the greedy set cover (Chvatal, "A greedy heuristic for the set-covering problem", 1979): never more than
    1 + 1/2 + ... + 1/m times the fewest remote nodes, for m experts that are not at home; and the fewest where m is at
    most 3 or there are at most 3 nodes.

    Raises InputError where a token names an expert that no slot holds.
    """
    num_experts = 1 + int(max(slot_map_row.max(initial=0), topk.max(initial=0)))
    table = serving_table(
        slot_map_row, num_experts=num_experts, num_gpus=num_gpus, num_nodes=num_nodes, node_distance=node_distance
    )
    columns = np.ascontiguousarray(topk.T)
    return np.ascontiguousarray(serve_columns(table, columns, np.asarray(home), np.asarray(token)).T)


def serve_columns(table: ServingTable, columns: Integers, home: Integers, token: Integers) -> Indices:
    """Return what `serve` does, for the experts of the tokens as [k, tokens] and tables made before: [k, tokens].

    Raises InputError where a token names an expert that no slot holds.
    """
    check_held(table, columns)
    slots = np.empty(columns.shape, dtype=np.int64)
    words = _packed(table.held, columns.shape[0])
    for first in range(0, columns.shape[1], _CHUNK_TOKENS):
        part = slice(first, first + _CHUNK_TOKENS)
        experts = columns[:, part]
        nodes = _serving_nodes(table, words, experts, home[part], token[part])
        slots[:, part] = turn_slots(table, experts, nodes, home[part], token[part])
    return slots


def check_held(table: ServingTable, experts: Integers) -> None:
    """Raise InputError where `experts` names one that no slot holds."""
    missing = ~table.held.any(axis=1)
    if missing.any():
        used = np.bincount(experts.ravel(), minlength=missing.size) > 0
        lost = np.flatnonzero(missing & used)
        if lost.size:
            raise InputError("no slot holds an expert that tokens go to", field="expert", value=int(lost[0]))


def turn_slots(table: ServingTable, experts: Integers, nodes: Integers, home: Integers, token: Integers) -> Indices:
    """Return the slot on `nodes` whose turn it is to serve `experts` (step 3 of `serve`), both [k, tokens]."""
    turn = token % table.num_nodes + token // table.num_nodes + home
    cells = experts.astype(np.int64) * table.num_nodes + nodes
    start = table.start.ravel().take(cells)
    if int(table.turns.max()) > 1:
        start += turn % table.turns.ravel().take(cells)
    return table.slots.take(start)


def _lane(k: int) -> np.dtype[np.unsignedinteger[Any]]:
    """Return the type that can count the k experts of a token."""
    return np.dtype(np.uint8) if k <= _MAX_BYTE else np.dtype(np.uint16)


def _packed(held: NDArray[np.bool_], k: int) -> NDArray[np.uint64]:
    """Return one lane a node, 1 where it holds the expert, as words, [experts, words]: sums of rows count lane-wise."""
    lane = _lane(k)
    per_word = 8 // lane.itemsize
    lanes = np.zeros((held.shape[0], -(-held.shape[1] // per_word) * per_word), dtype=lane)
    lanes[:, : held.shape[1]] = held
    return lanes.view(np.uint64)


def _serving_nodes(
    table: ServingTable, words: NDArray[np.uint64], experts: Integers, home: Integers, token: Integers
) -> NDArray[np.int16]:
    """Return the node that serves each (token, expert) (steps 1 and 2 of `serve`), [k, tokens]."""
    k, num_tokens = experts.shape
    num_nodes = table.num_nodes
    lane = _lane(k)
    at_home = table.held.ravel().take(experts.astype(np.int64) * num_nodes + home)
    nodes = np.where(at_home, home, 0).astype(np.int16)
    unserved = words.take(experts, axis=0)  # [k, tokens, words]
    unserved[at_home] = 0
    rows: Indices = np.arange(num_tokens, dtype=np.int64)
    every = np.arange(num_nodes, dtype=np.int32)
    rotation = num_nodes - 1 - (every[None, :] - every[:, None]) % num_nodes  # [offset, nodes], the first highest
    offset = (home + token) % num_nodes
    while True:
        held = unserved[0].copy()
        for more in unserved[1:]:
            held += more
        active = np.flatnonzero(held.any(axis=1))
        if active.size == 0:
            return nodes
        rows, unserved, held = rows[active], unserved[:, active], held[active]
        score = held.view(lane)[:, :num_nodes].astype(np.int32)
        if table.nearness is not None:
            score = score * num_nodes + table.nearness.take(home[rows], axis=0)
        score = score * num_nodes + rotation.take(offset[rows], axis=0)
        taken = score.argmax(axis=1).astype(np.int16)
        hit = unserved.view(lane)[:, np.arange(rows.size), taken] > 0
        nodes[:, rows] = np.where(hit, taken, nodes[:, rows])
        unserved[hit] = 0
