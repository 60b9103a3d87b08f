"""The figures by which a slot map is judged: balance, wasted slots and traffic, beside bounds and another map."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import numpy as np
from pydantic import Field

from moiety.placement.lower_bound import peak_lower_bound
from moiety.placement.serving.affinity import sequence_affinity
from moiety.placement.serving.traffic import ServedTraffic, traffic
from moiety.records import Record

if TYPE_CHECKING:
    from moiety.placement.problem import Loads, PlacementProblem, SlotMap
    from moiety.placement.serving.rule import Indices, Integers

Share = Annotated[float, Field(ge=0, le=1)]
Amount = Annotated[float, Field(ge=0)]


class BalanceMetrics(Record):
    """Mean over max of the loads of GPUs or nodes, in proportion to their speed; 1 is perfect."""

    mean: Share
    """Over layers and windows."""
    worst_layer: Share
    """The least of any layer, in any window."""
    by_window: tuple[Share, ...]
    """Mean over layers, window by window."""


class ServedMetrics(Record):
    """What one way of choosing copies makes a token reach: means over tokens, uniform homes and layers."""

    remote_messages: Amount
    """Messages to other nodes under flat dispatch, one for each expert."""
    remote_gpus: Amount
    """Distinct GPUs on other nodes: messages with one for each GPU."""
    remote_nodes: Amount
    """Distinct other nodes: messages with one for each node, as a hierarchical dispatch sends them."""
    remote_distance: Amount
    """Sum of the distances to those nodes; their number where all nodes are equally far."""
    reached_gpus: Amount
    """Distinct GPUs, those of the home node too."""
    reached_nodes: Amount
    """Distinct nodes, the home node too where it serves the token."""
    balance: Share
    """Mean over max of what the GPUs really serve of the trace, mean over layers."""
    worst_layer: Share
    """The least balance of any layer."""


class TrafficMetrics(Record):
    """Traffic over a trace, by how copies are chosen."""

    even: ServedMetrics
    """Each copy takes its share, blind to locality: what a load balancer alone does."""
    local: ServedMetrics
    """A copy on the home node where there is one, else as in `even`."""
    cover: ServedMetrics
    """Our serving rule: home first, then the fewest nodes, found greedily."""
    flat_messages: Amount
    """k (1 - 1 / nodes): remote messages of a flat dispatch with one copy an expert, whatever the placement."""
    all_homes: bool
    """Whether every token was taken from every node (exact); else token t from node t mod nodes."""
    num_tokens: Annotated[int, Field(gt=0)]
    affinity_remote_nodes: Amount | None = None
    """What if: remote nodes of the tokens that follow a sequence's first 32, which choose its home node."""
    affinity_reduction: float | None = None
    """How far that is below the same tokens' remote nodes with uniform homes."""


class Comparison(Record):
    """A map beside another one, over the same loads and trace."""

    name: str
    """The other map's method."""
    balance_gain: float
    """Mean balance of this map less the other's."""
    remote_nodes_below_even: float | None = None
    """How far our remote nodes are below the other's with node dedup and even copies; None without such traffic."""
    remote_nodes_below_local: float | None = None
    """Likewise with the other's copies chosen local first."""
    remote_nodes_below_cover: float | None = None
    """Likewise with the other's copies chosen by our serving rule."""
    remote_nodes_below_flat: float | None = None
    """How far our remote nodes are below the remote messages of a flat dispatch with one copy an expert."""


class PlacementMetrics(Record):
    """How good a slot map is; loads share equally between an expert's copies, unless a serving rule is named."""

    gpu_balance: BalanceMetrics
    node_balance: BalanceMetrics
    balance_bound: BalanceMetrics
    """What no placement on these slots can exceed per GPU."""
    redundancy: Amount
    """Slots beyond one an expert, relative to the experts."""
    wasted_slots: Annotated[int, Field(ge=0)]
    """Slots, over all layers, that repeat an expert on its own GPU."""
    traffic: TrafficMetrics | None = None
    """None where the tokens' choices are not known."""
    versus: Comparison | None = None


def gpu_loads(problem: PlacementProblem, slot_map: SlotMap, shares: Loads | None = None) -> Loads:
    """Return each GPU's share of its layer's work when copies share equally, [windows, layers, GPUs].

    `shares` [windows, layers, experts] are the experts' shares of the work, those of the problem unless told; where
    they sum to 1, so do the GPUs'.
    """
    shares = problem.shares() if shares is None else shares
    windows, layers, experts = shares.shape
    cells: Indices = slot_map + np.arange(layers, dtype=np.int64)[:, None] * experts
    copies = np.bincount(cells.ravel(), minlength=layers * experts)
    per_copy = shares.reshape(windows, -1) / np.maximum(copies, 1)
    return per_copy[:, cells].reshape(windows, layers, problem.num_gpus, -1).sum(axis=3)


def balance_of(loads: Loads, speed: Loads) -> Loads:
    """Return mean over max of the last axis of `loads`, each divided by its relative `speed` (mean 1)."""
    return loads.mean(axis=-1) / (loads / speed).max(axis=-1)


def wasted_slots(problem: PlacementProblem, slot_map: SlotMap) -> int:
    """Return how many slots, over all layers, hold an expert that an earlier slot of their GPU holds."""
    by_gpu = np.sort(slot_map.reshape(slot_map.shape[0], problem.num_gpus, -1), axis=2)
    return int((by_gpu[:, :, 1:] == by_gpu[:, :, :-1]).sum())


def measure(
    problem: PlacementProblem,
    slot_map: SlotMap,
    *,
    sequence: Integers | None = None,
    versus: tuple[str, PlacementMetrics] | None = None,
) -> PlacementMetrics:
    """Return the figures of a slot map that holds every expert; `versus` names another map of the problem.

    `sequence` [tokens] is the sequence of each token, where known. Raises InputError where no slot holds an expert that
    tokens go to.
    """
    speed = problem.speed()
    loads = gpu_loads(problem, slot_map)
    node_speed = speed.reshape(problem.num_nodes, -1).mean(axis=1)
    bound = peak_lower_bound(problem.shares(), num_gpus=problem.num_gpus, num_slots=problem.num_slots, gpu_speed=speed)
    metrics = PlacementMetrics(
        gpu_balance=_balance_metrics(balance_of(loads, speed)),
        node_balance=_balance_metrics(balance_of(_by_node(loads, problem.num_nodes), node_speed)),
        balance_bound=_balance_metrics(1 / (problem.num_gpus * bound)),
        redundancy=problem.num_slots / problem.num_experts - 1,
        wasted_slots=wasted_slots(problem, slot_map),
        traffic=_traffic_metrics(problem, slot_map, sequence),
    )
    if versus is None:
        return metrics
    return metrics.model_copy(update={"versus": compare(metrics, *versus)})


def compare(metrics: PlacementMetrics, name: str, other: PlacementMetrics) -> Comparison:
    """Return the figures of one map beside those of another, `name`, over the same problem."""
    ours, theirs = metrics.traffic, other.traffic
    gain = metrics.gpu_balance.mean - other.gpu_balance.mean
    if ours is None or theirs is None:
        return Comparison(name=name, balance_gain=gain)
    nodes = ours.cover.remote_nodes
    return Comparison(
        name=name,
        balance_gain=gain,
        remote_nodes_below_even=_below(nodes, theirs.even.remote_nodes),
        remote_nodes_below_local=_below(nodes, theirs.local.remote_nodes),
        remote_nodes_below_cover=_below(nodes, theirs.cover.remote_nodes),
        remote_nodes_below_flat=_below(nodes, ours.flat_messages),
    )


def _below(ours: float, theirs: float) -> float | None:
    """Return how far `ours` is below `theirs`, relative to it; None where that is nothing."""
    return 1 - ours / theirs if theirs > 0 else None


def _by_node(loads: Loads, num_nodes: int) -> Loads:
    return loads.reshape(*loads.shape[:-1], num_nodes, -1).sum(axis=-1)


def _share(value: float) -> float:
    """Return a balance without the rounding that may lift a perfect one above 1."""
    return min(float(value), 1.0)


def _balance_metrics(values: Loads) -> BalanceMetrics:
    """Return the record of balances [windows, layers]."""
    windows = tuple(_share(value) for value in values.mean(axis=1))
    return BalanceMetrics(mean=_share(values.mean()), worst_layer=_share(values.min()), by_window=windows)


def _traffic_metrics(problem: PlacementProblem, slot_map: SlotMap, sequence: Integers | None) -> TrafficMetrics | None:
    """Return the traffic figures of a slot map, None without a trace."""
    if problem.topk is None:
        return None
    found = traffic(problem, slot_map)
    affinity = None if sequence is None else sequence_affinity(problem, slot_map, sequence)
    return TrafficMetrics(
        even=_served_metrics(problem, found.served["even"]),
        local=_served_metrics(problem, found.served["local"]),
        cover=_served_metrics(problem, found.served["cover"]),
        flat_messages=problem.topk.shape[2] * (1 - 1 / problem.num_nodes),
        all_homes=found.all_homes,
        num_tokens=found.num_tokens,
        affinity_remote_nodes=None if affinity is None else affinity.remote_nodes,
        affinity_reduction=None if affinity is None else _below(affinity.remote_nodes, affinity.uniform_remote_nodes),
    )


def _served_metrics(problem: PlacementProblem, served: ServedTraffic) -> ServedMetrics:
    """Return the means over layers of one serving rule's traffic."""
    balances = balance_of(served.gpu_loads, problem.speed())
    distance = problem.node_distance
    away = served.remote_nodes if distance is None else served.remote_distance(distance)
    return ServedMetrics(
        remote_messages=_amount(served.remote_messages),
        remote_gpus=_amount(served.remote_gpus),
        remote_nodes=_amount(served.remote_nodes),
        remote_distance=_amount(away),
        reached_gpus=_amount(served.reached_gpus),
        reached_nodes=_amount(served.reached_nodes),
        balance=_share(balances.mean()),
        worst_layer=_share(balances.min()),
    )


def _amount(values: Loads) -> float:
    """Return the mean of amounts, without the rounding that may push nothing below 0."""
    return max(float(values.mean()), 0.0)
