"""The smallest number of GPUs that a model and a workload fit on."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import replace
from typing import TYPE_CHECKING

from moiety.cluster.resize import resized
from moiety.errors import InputError
from moiety.search.judge import Judged, judge
from moiety.strategy.enumeration import enumerate_strategies

if TYPE_CHECKING:
    from moiety.cluster.cluster import Cluster
    from moiety.plan import Options
    from moiety.projection.scenario import Scenario
    from moiety.strategy.strategy import Strategy

_MOST_NODES = 512
_MOST_STRATEGIES = 64


def smallest_fitting_gpus(scenario: Scenario, options: Options, *, tune: bool = True) -> int | None:
    """Return the fewest GPUs of the cluster's kind on which some strategy fits, None when 512 nodes do not do.

    `tune` is as in `judge`. Parts of a node are tried first, then whole nodes (and whole link domains where those are
    wider) by doubling, then the gap by halving.
    """
    sizes = _sizes(scenario.cluster)
    parts = bisect_left(sizes, scenario.cluster.gpus_per_node)
    for gpus in sizes[:parts]:
        if _fits(scenario, options, gpus, tune=tune):
            return gpus
    sizes = sizes[parts:]
    low, high = -1, 0
    while not _fits(scenario, options, sizes[high], tune=tune):
        if high == len(sizes) - 1:
            return None
        low, high = high, min(2 * high + 1, len(sizes) - 1)
    while high - low > 1:
        middle = (low + high) // 2
        if _fits(scenario, options, sizes[middle], tune=tune):
            high = middle
        else:
            low = middle
    return sizes[high]


def _sizes(cluster: Cluster) -> list[int]:
    """Return the numbers of GPUs that the cluster's kind comes in, up to 512 nodes: parts of a node first."""
    node = cluster.gpus_per_node
    widest = max([node, *(tier.num_gpus for tier in cluster.tiers[:-1])])
    parts = [each for each in (1, 2, 4) if each < node]
    return [*parts, *range(node, widest, node), *range(widest, _MOST_NODES * node + 1, widest)]


def _fits(scenario: Scenario, options: Options, num_gpus: int, *, tune: bool) -> bool:
    """Return whether some strategy fits.

    Experts take the same memory whichever way a stage divides them, so of the strategies that differ in nothing else
    the one with the widest expert parallelism stands for all; fewest copies of the model are tried first.
    """
    try:
        smaller = replace(scenario, cluster=resized(scenario.cluster, num_gpus))
    except InputError:
        return False
    legal = [
        c.strategy for c in enumerate_strategies(scenario.model, num_gpus, options.redundant_experts) if c.is_legal
    ]
    widest: dict[tuple[int, int, int], Strategy] = {}
    for strategy in sorted(legal, key=lambda s: (s.instances, s.pp, -s.tp, -s.ep)):
        widest.setdefault((strategy.instances, strategy.pp, strategy.tp), strategy)
    off = options.model_copy(update={"two_batch_overlap": False})
    return any(
        isinstance(judge(smaller, strategy, off, tune=tune, timing="estimated"), Judged)
        for strategy in list(widest.values())[:_MOST_STRATEGIES]
    )
