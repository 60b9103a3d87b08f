"""Traffic: how many GPUs and nodes a slot map makes the tokens of a trace reach, and who does the work."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np

from moiety.placement.serving.rule import check_held, serve_columns, serving_table, turn_slots

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from moiety.placement.problem import Loads, PlacementProblem, SlotMap
    from moiety.placement.serving.rule import Indices, Integers, ServingTable

ServingRule: TypeAlias = Literal["even", "local", "cover"]
"""How a copy is chosen: each copy its even share, blind to locality (by token index, as EPLB's users do); a copy on the
home node first and else the even one; or the rule of `rule.serve`, which covers the rest by few nodes."""

RULES: tuple[ServingRule, ...] = ("even", "local", "cover")
MAX_SERVED = 2_000_000
"""(layer, token, home) that are served one by one; past it each token starts from one home, and fewer are taken."""
_NODES_AT_ONCE = 8
"""Beyond so many nodes serving a token takes longer in proportion, and `MAX_SERVED` is that much less."""
_CHUNK_TOKENS = 16_384


@dataclass(frozen=True, slots=True, eq=False)
class ServedTraffic:
    """What one serving rule makes of the tokens: means over tokens whose home is drawn uniformly from the nodes.

    The matrices are [layers, home nodes, reached nodes] and sum over both nodes to the mean per token; their diagonals
    stay inside the home node.
    """

    messages: Loads
    """(token, expert) pairs: what a flat dispatch sends, one message an expert."""
    gpus: Loads
    """Distinct GPUs that serve the token: a dispatch with one message a GPU."""
    nodes: Loads
    """Distinct nodes that serve the token: a hierarchical dispatch with one message a node."""
    gpu_loads: Loads
    """(token, expert) pairs that each GPU serves per token of the layer, [layers, GPUs]; rows sum to k."""

    @property
    def remote_messages(self) -> Loads:
        """Return the messages per token that leave the home node under flat dispatch, [layers]."""
        return _off_diagonal(self.messages)

    @property
    def remote_gpus(self) -> Loads:
        """Return the distinct GPUs on other nodes that a token must reach, [layers]."""
        return _off_diagonal(self.gpus)

    @property
    def remote_nodes(self) -> Loads:
        """Return the distinct other nodes that a token must reach, [layers]."""
        return _off_diagonal(self.nodes)

    @property
    def reached_gpus(self) -> Loads:
        """Return the distinct GPUs that a token must reach, on the home node too, [layers]."""
        return self.gpus.sum(axis=(1, 2))

    @property
    def reached_nodes(self) -> Loads:
        """Return the distinct nodes that a token must reach, the home node too where it serves it, [layers]."""
        return self.nodes.sum(axis=(1, 2))

    def remote_distance(self, node_distance: Loads) -> Loads:
        """Return the sum of the distances to the other nodes that a token must reach, [layers]."""
        return (self.nodes * node_distance).sum(axis=(1, 2))


@dataclass(frozen=True, slots=True, eq=False)
class Traffic:
    """The traffic of one slot map over a trace, by serving rule."""

    served: dict[ServingRule, ServedTraffic]
    all_homes: bool
    """Whether each token was taken from every home node with equal weight (exact); else token t from home t mod N."""
    num_tokens: int
    """Tokens taken: all of the trace, or as many at equal distances as the limit allows."""


def _off_diagonal(matrices: Loads) -> Loads:
    return matrices.sum(axis=(1, 2)) - matrices.diagonal(axis1=1, axis2=2).sum(axis=1)


def traffic(
    problem: PlacementProblem,
    slot_map: SlotMap,
    *,
    rules: Sequence[ServingRule] = RULES,
    max_served: int | None = None,
) -> Traffic:
    """Return the traffic of a slot map over the problem's trace, under each of `rules`.

    The mean over homes is exact where layers x tokens x nodes is at most `max_served` (without it `MAX_SERVED`, less on
    many nodes): token t, with index t, starts from every node with weight 1 / nodes. Else token t starts from node
    t mod nodes only, with index t // nodes among that node's tokens; a layer without copies, and `even`, whose choice
    does not depend on the home, stay exact. Where layers x tokens alone is more, that many tokens at equal distances
    stand for the trace.

    Raises InputError where a token names an expert that no slot holds. The problem must have a trace.
    """
    assert problem.topk is not None
    most = MAX_SERVED * _NODES_AT_ONCE // max(problem.num_nodes, _NODES_AT_ONCE) if max_served is None else max_served
    topk, all_homes = _sample(problem.topk, problem.num_nodes, most)
    num_tokens = topk.shape[1]
    rows: dict[ServingRule, list[_Tally]] = {rule: [] for rule in rules}
    for experts, slots in zip(topk, slot_map, strict=True):
        layer = _LayerMap.of(problem, slots)
        tallies: dict[ServingRule, _Tally] = {rule: _Tally.empty(problem) for rule in rules}
        for first in range(0, num_tokens, _CHUNK_TOKENS):
            columns = np.ascontiguousarray(experts[first : first + _CHUNK_TOKENS].T, dtype=np.int64)
            check_held(layer.table, columns)
            token = np.arange(first, first + columns.shape[1], dtype=np.int64)
            for rule, tally in tallies.items():
                _tally_rule(tally, layer, rule, columns, token, all_homes=all_homes)
        for rule, tally in tallies.items():
            rows[rule].append(tally)
    served: dict[ServingRule, ServedTraffic] = {rule: _summed(tallies) for rule, tallies in rows.items()}
    return Traffic(served=served, all_homes=all_homes, num_tokens=num_tokens)


def _sample(topk: Integers, num_nodes: int, max_served: int) -> tuple[Integers, bool]:
    """Return the tokens to serve, [layers, tokens, k], and whether each is served from every node."""
    num_layers, num_tokens, _ = topk.shape
    if num_layers * num_tokens * num_nodes <= max_served:
        return topk, True
    wanted = max(max_served // num_layers, 1)
    if wanted >= num_tokens:
        return topk, False
    return topk[:, np.arange(wanted) * num_tokens // wanted], False


@dataclass(frozen=True, slots=True, eq=False)
class _LayerMap:
    """One layer's slots, in the forms in which the rules look them up."""

    table: ServingTable
    copies: Indices
    """Slots of each expert, [experts]; two on one GPU count twice."""
    start: Indices
    """Where in `slots` those of an expert begin, [experts]."""
    slots: Indices
    """All slots by expert."""
    num_gpus: int

    @classmethod
    def of(cls, problem: PlacementProblem, slots: Indices) -> _LayerMap:
        """Return the forms of one row of the slot map."""
        table = serving_table(
            slots,
            num_experts=problem.num_experts,
            num_gpus=problem.num_gpus,
            num_nodes=problem.num_nodes,
            node_distance=problem.node_distance,
        )
        copies = np.bincount(slots, minlength=problem.num_experts)
        start = np.cumsum(copies) - copies
        return cls(table, copies, start, np.argsort(slots, kind="stable"), problem.num_gpus)

    def choose(self, rule: ServingRule, columns: Integers, home: Integers, token: Integers) -> Indices:
        """Return the slot that serves each (token, expert) under a rule, [k, tokens]."""
        if rule == "cover":
            return serve_columns(self.table, columns, home, token)
        even = self.slots.take(self.start.take(columns) + token % self.copies.take(columns))
        if rule == "even":
            return even
        local = self.table.held.ravel().take(columns * self.table.num_nodes + home)
        node = even // (self.slots.size // self.table.num_nodes)
        return np.where(local, turn_slots(self.table, columns, np.where(local, home, node), home, token), even)


@dataclass(frozen=True, slots=True, eq=False)
class _Tally:
    """Sums over a layer's tokens, in the shapes of `ServedTraffic`; each home's tokens are counted in `tokens`."""

    messages: Loads
    gpus: Loads
    nodes: Loads
    gpu_loads: Loads
    tokens: Loads

    @classmethod
    def empty(cls, problem: PlacementProblem) -> _Tally:
        """Return sums over no token."""
        pairs = (problem.num_nodes, problem.num_nodes)
        loads = (problem.num_nodes, problem.num_gpus)
        return cls(np.zeros(pairs), np.zeros(pairs), np.zeros(pairs), np.zeros(loads), np.zeros(problem.num_nodes))


def _tally_rule(
    tally: _Tally, layer: _LayerMap, rule: ServingRule, columns: Integers, token: Indices, *, all_homes: bool
) -> None:
    """Serve some tokens of a layer by a rule and add them to its sums."""
    num_nodes = layer.table.num_nodes
    if rule == "even" or int(layer.copies.max()) == 1:  # the home has no say: one service counts for every home
        anywhere = np.zeros_like(token)
        _count(tally, layer, layer.choose(rule, columns, anywhere, token), anywhere, slice(None))
    elif all_homes:
        for node in range(num_nodes):
            home = np.full_like(token, node)
            _count(tally, layer, layer.choose(rule, columns, home, token), home, slice(node, node + 1))
    else:
        home = token % num_nodes
        _count(tally, layer, layer.choose(rule, columns, home, token // num_nodes), home, None)


def _count(tally: _Tally, layer: _LayerMap, slots: Indices, home: Indices, rows: slice | None) -> None:
    """Add served tokens to the sums: all of them to each home in `rows`, or each to its own home where it is None."""
    nodes, gpus = layer.table.num_nodes, layer.num_gpus
    own = home if rows is None else np.zeros_like(home)
    num_rows = nodes if rows is None else 1
    to = slice(None) if rows is None else rows
    gpu = slots // (layer.slots.size // gpus)
    node = gpu // (gpus // nodes)
    first_gpu, first_node = _first_seen(gpu), _first_seen(node)
    at_gpu = np.bincount((own * gpus + gpu).ravel(), minlength=num_rows * gpus).reshape(num_rows, gpus)
    pair = own * nodes + node

    def histogram(chosen: Indices) -> Indices:
        return np.bincount(chosen, minlength=num_rows * nodes).reshape(num_rows, nodes)

    tally.gpu_loads[to] += at_gpu
    tally.messages[to] += at_gpu.reshape(num_rows, nodes, gpus // nodes).sum(axis=2)
    tally.gpus[to] += histogram(pair[first_gpu])
    tally.nodes[to] += histogram(pair[first_node])
    tally.tokens[to] += np.bincount(own, minlength=num_rows)


def _first_seen(columns: Indices) -> NDArray[np.bool_]:
    """Return whether a token's value is its first of that value, [k, tokens]; `columns` [k, tokens] is below 2**31."""
    small = columns.astype(np.int16 if columns.max(initial=0) < 2**15 else np.int32)
    first = np.ones(columns.shape, dtype=np.bool_)
    for late in range(1, columns.shape[0]):
        for early in range(late):
            first[late] &= small[late] != small[early]
    return first


def _summed(tallies: Sequence[_Tally]) -> ServedTraffic:
    """Return the layers' means over tokens with a uniform home, of those that any token starts from."""

    def mean(part: Callable[[_Tally], NDArray[Any]]) -> Loads:
        return np.stack(
            [part(tally) / np.maximum(tally.tokens, 1)[:, None] / np.count_nonzero(tally.tokens) for tally in tallies]
        )

    return ServedTraffic(
        messages=mean(lambda tally: tally.messages),
        gpus=mean(lambda tally: tally.gpus),
        nodes=mean(lambda tally: tally.nodes),
        gpu_loads=mean(lambda tally: tally.gpu_loads).sum(axis=1),
    )
