"""Our placement for balance and cross-node traffic together, from the tokens' own choices."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from moiety.placement.methods.balance import balance, peaks
from moiety.placement.methods.eplb import eplb, eplb_global
from moiety.placement.methods.linear_map import linear
from moiety.placement.methods.node_distance import is_uneven, mean_one
from moiety.placement.methods.packing import has_twins
from moiety.placement.methods.round_robin import round_robin
from moiety.placement.methods.token_sample import token_sample
from moiety.placement.metrics import gpu_loads

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from moiety.placement.methods.local_search import LayerProblem
    from moiety.placement.problem import Loads, PlacementProblem, SlotMap

MAX_NODES = 62
"""Nodes that the search tells apart: bits of an integer."""
_SLACK = 0.004
"""What traffic may cost: load of the fullest GPU above that of EPLB's map, in units of the mean, but at most ..."""
_MOST_SLACK = 0.04
"""... this and that above the best that is known."""
_DRIFT_SLACK = 0.01
"""What traffic may cost in each stretch of the trace, above the fullest GPU of EPLB's map there."""
_SERVED_SLACK = 0.02
"""What traffic may cost as served, when the copies near a token get more of the work than an even share."""
_STRETCHES = 8
"""Stretches of a trace whose loads are watched apart, so that experts that drift together are not put together."""
_TOKENS_PER_EXPERT = 200
"""Tokens that an expert should have in a stretch, on average."""
_ROUNDS = 120
"""Rounds of kicks at effort 1 for maps of up to ..."""
_ROUND_SLOTS = 64
"""... this many slots; with the fourth power fewer for bigger ones, which a kick changes less and costs more."""
_RECORDS = 2048
_FEWEST_RECORDS = 512
_PASSES = 5
"""Passes of a descent."""


def joint(problem: PlacementProblem, effort: float = 1.0, slack: float | None = None) -> SlotMap:
    """Return a map of few remote nodes per token whose balance is about the best that is known.

    The search starts from the map of `balance`, and where the router is node-limited from EPLB's hierarchical one too,
    which keeps the router's groups together. It weighs every move by what it saves of the distance to remote nodes, and
    by the load that it adds to GPUs above their limit: that of the fullest GPU under `balance` or under EPLB, in every
    window and in stretches of the trace. With `slack` the limit is that much above the fullest GPU of `balance`, in
    units of the mean, and drift is not looked at. Without tokens, or on one node, it is `balance`; more than 62 nodes
    are searched as sets of neighbours. No layer is worse than a simple method's map of the same balance. In whatever
    order experts, the GPUs of a node or the nodes are numbered, the same problem gives a map of the same cost, ties
    apart.
    """
    num_nodes = num_searched_nodes(problem.num_nodes)
    if problem.topk is None or num_nodes == 1:
        return balance(problem)
    problem = _coarser(problem, num_nodes)
    gpus = _gpu_order(problem)
    problem = _reordered(problem, gpus)
    shares = problem.shares()
    by_load = np.argsort(np.argsort(-shares.sum(axis=0), axis=1, kind="stable"), axis=1)
    found = _searched(problem, by_load, effort, slack).reshape(problem.num_layers, problem.num_gpus, -1)
    slots = np.empty_like(found)
    slots[:, gpus] = found
    return slots.reshape(problem.num_layers, -1)


def num_searched_nodes(num_nodes: int) -> int:
    """Return how many nodes the search tells apart: of more than it takes, equally many neighbours count as one."""
    return next(count for count in range(min(num_nodes, MAX_NODES), 0, -1) if num_nodes % count == 0)


def _coarser(problem: PlacementProblem, num_nodes: int) -> PlacementProblem:
    """Return the problem with neighbouring nodes taken for one; their distance to others is the mean of theirs."""
    if num_nodes == problem.num_nodes:
        return problem
    distance = problem.node_distance
    if distance is not None:
        distance = distance.reshape(num_nodes, -1, num_nodes, problem.num_nodes // num_nodes).mean(axis=(1, 3))
        np.fill_diagonal(distance, 0.0)
    return replace(problem, num_nodes=num_nodes, node_distance=distance)


def _gpu_order(problem: PlacementProblem) -> NDArray[np.int64]:
    """Return the GPUs with like ones side by side: nodes by speed and distance, the GPUs of a node by speed."""
    speed = problem.speed().reshape(problem.num_nodes, -1)
    far = np.zeros(problem.num_nodes) if problem.node_distance is None else problem.node_distance.sum(axis=0)
    nodes = np.lexsort((far, speed.sum(axis=1)))
    within = np.argsort(speed[nodes], axis=1, kind="stable")
    return (nodes[:, None] * problem.gpus_per_node + within).reshape(-1)


def _reordered(problem: PlacementProblem, gpus: NDArray[np.int64]) -> PlacementProblem:
    """Return the problem with its GPUs, and with them the nodes, in another order."""
    nodes = gpus[:: problem.gpus_per_node] // problem.gpus_per_node
    speed, distance = problem.gpu_speed, problem.node_distance
    return replace(
        problem,
        gpu_speed=None if speed is None else speed[gpus],
        node_distance=None if distance is None else distance[nodes][:, nodes],
    )


def _searched(problem: PlacementProblem, by_load: SlotMap, effort: float, slack: float | None) -> SlotMap:
    """Return the searched map; `by_load` [layers, experts] is each expert's rank by load, its number in the search."""
    from moiety.placement.methods.local_search import improved  # noqa: PLC0415 - compiled only where tokens are known

    layer = np.arange(problem.num_layers, dtype=np.int64)[:, None]
    best, published = balance(problem, effort=0.0), eplb_global(problem)  # a start: the search goes on from here
    starts = [(best, np.ones(problem.num_layers, dtype=np.bool_))]  # each with the layers that may start from it
    if problem.num_groups > 1 and problem.num_groups % problem.num_nodes == 0:
        grouped = eplb(problem)
        starts.append((grouped, ~_twins(problem, grouped)))
    layers = _layer_problems(problem, by_load, best, published, slack)
    rounds = int(_ROUNDS * effort * min(1.0, _ROUND_SLOTS / problem.num_slots) ** 4)

    def search(at: int) -> SlotMap:
        ground = layers(at)
        apart = [start[at] for start, allowed in starts if allowed[at]]
        tries = [improved(ground, by_load[at][row], rounds=rounds, passes=_PASSES, seed=0) for row in apart]
        return min(tries, key=lambda each: each[1])[0]

    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        found = np.stack(list(pool.map(search, range(problem.num_layers))))
    order = np.argsort(by_load, axis=1)
    return _not_worse_than_simple(problem, order[layer, found], published, by_load, layers)


def _not_worse_than_simple(
    problem: PlacementProblem,
    found: SlotMap,
    published: SlotMap,
    by_load: SlotMap,
    layers: Callable[[int], LayerProblem],
) -> SlotMap:
    """Return the map with a simple method's row where that is as balanced, keeps copies apart and has less traffic."""
    from moiety.placement.methods.local_search import remote_distance  # noqa: PLC0415 - as above

    shares, found = problem.shares(), found.copy()
    for simple in (published, linear(problem), round_robin(problem)):
        as_good = peaks(problem, shares, simple) <= peaks(problem, shares, found) * (1 + 1e-9)
        for at in np.flatnonzero(as_good & ~_twins(problem, simple)).tolist():
            ground, mine, theirs = layers(at), by_load[at][found[at]], by_load[at][simple[at]]
            if remote_distance(ground, theirs) < remote_distance(ground, mine):
                found[at] = simple[at]
    return found


def _twins(problem: PlacementProblem, slots: SlotMap) -> NDArray[np.bool_]:
    """Return in which layers a GPU holds two copies of an expert, [layers]."""
    return has_twins(slots.reshape(problem.num_layers, problem.num_gpus, -1))


def _layer_problems(
    problem: PlacementProblem, by_load: SlotMap, best: SlotMap, published: SlotMap, slack: float | None
) -> Callable[[int], LayerProblem]:
    """Return the problem of each layer, in the experts' numbers by load, made when it is asked for.

    Loads are in units of a GPU's mean. `best` and `published` are the maps of `balance` and EPLB, in the old numbers.
    """
    from moiety.placement.methods.local_search import SERVED_WEIGHT, LayerProblem  # noqa: PLC0415 - as above

    assert problem.topk is not None, "tokens are known"
    topk = problem.topk
    shares, stretches = problem.shares(), _stretches(problem)
    every = np.concatenate([shares, stretches])
    gpus = problem.num_gpus
    ours, theirs = (  # the fullest GPU, [windows, layers]
        (gpu_loads(problem, slots, every) / problem.speed()).max(axis=2) * gpus for slots in (best, published)
    )
    known = len(shares)
    limit = np.empty_like(ours)
    worst = ours[:known].max(axis=0)
    limit[:known] = np.clip(theirs[:known].max(axis=0), worst, worst + _MOST_SLACK) + _SLACK
    if slack is not None:
        limit[:known], limit[known:] = worst + slack, np.inf
    elif len(stretches):
        limit[known:] = np.maximum(theirs[known:], theirs[known:].mean(axis=0)) + _DRIFT_SLACK
    order = np.argsort(by_load, axis=1)
    load = np.take_along_axis(every, order[None], axis=2) * gpus
    records = int(np.clip(_RECORDS * _ROUND_SLOTS / problem.num_slots, _FEWEST_RECORDS, _RECORDS))
    distance, speed = mean_one(problem.node_distance, problem.num_nodes), problem.speed()
    uneven = is_uneven(distance)

    def layer_problem(at: int) -> LayerProblem:
        tokens = token_sample(topk[at], problem.num_experts, problem.num_nodes, records)
        return LayerProblem(
            load=np.ascontiguousarray(load[:, at]),
            limit=np.append(limit[:, at], (limit[0, at] + _SERVED_SLACK) * SERVED_WEIGHT)[:, None] * speed,
            sample=replace(tokens, experts=by_load[at][tokens.experts]),
            distance=distance,
            uneven=uneven,
        )

    return layer_problem


def _stretches(problem: PlacementProblem) -> Loads:
    """Return each expert's share of the tokens where loads may drift, [2 x stretches, layers, experts].

    They are the shares in stretches of the trace, and those as far on the other side of the mean, none below 0. There
    are fewer stretches, or none, where an expert would have too few tokens in one for its share to mean much.
    """
    assert problem.topk is not None, "tokens are known"
    layers, tokens, k = problem.topk.shape
    number = min(_STRETCHES, tokens * k // (problem.num_experts * _TOKENS_PER_EXPERT))
    if number < 2:  # noqa: PLR2004 - one stretch is the whole
        return np.empty((0, layers, problem.num_experts))
    first = np.arange(layers, dtype=np.int64)[:, None] * problem.num_experts
    counted = [
        np.bincount((part.reshape(layers, -1) + first).ravel(), minlength=layers * problem.num_experts)
        for part in np.array_split(problem.topk, number, axis=1)
    ]
    seen = np.stack(counted).reshape(number, layers, problem.num_experts) * (number / (tokens * k))
    return np.concatenate([seen, np.maximum(2 * seen.mean(axis=0) - seen, 0.0)])
