"""The smallest number of GPUs that a model and a workload fit on."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from moiety.cluster.resize import resized
from moiety.errors import InputError
from moiety.search.judge import Judged, judge
from moiety.strategy.enumeration import enumerate_strategies

if TYPE_CHECKING:
    from moiety.plan import Options
    from moiety.projection.scenario import Scenario

_MOST_NODES = 512


def smallest_fitting_gpus(scenario: Scenario, options: Options) -> int | None:
    """Return the fewest GPUs of the cluster's kind on which some strategy fits, None when 512 nodes do not do.

    Parts of a node are tried first, then nodes by doubling, then the gap by halving.
    """
    node = scenario.cluster.gpus_per_node
    for gpus in [each for each in (1, 2, 4) if each < node]:
        if _fits(scenario, options, gpus):
            return gpus
    nodes = 1
    while not _fits(scenario, options, nodes * node):
        nodes *= 2
        if nodes > _MOST_NODES:
            return None
    low, high = nodes // 2, nodes
    while high - low > 1:
        middle = (low + high) // 2
        if _fits(scenario, options, middle * node):
            high = middle
        else:
            low = middle
    return high * node


def _fits(scenario: Scenario, options: Options, num_gpus: int) -> bool:
    """Return whether some strategy fits; those that divide the weights most are tried first."""
    try:
        smaller = replace(scenario, cluster=resized(scenario.cluster, num_gpus))
    except InputError:
        return False
    legal = [c.strategy for c in enumerate_strategies(scenario.model, num_gpus, options.redundant_experts) if c.is_legal]
    legal.sort(key=lambda s: (s.instances, abs(s.tp - scenario.cluster.gpus_per_node), s.pp, s.name))
    off = options.model_copy(update={"two_batch_overlap": False})
    return any(
        isinstance(judge(smaller, s, off, scenario.workload.kind, tune=False, timing="estimated"), Judged)
        for s in legal[:48]
    )
