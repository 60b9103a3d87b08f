"""What each projected figure rests on: the weakest of its inputs."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from moiety.cost.expert_traffic import is_measured

if TYPE_CHECKING:
    from collections.abc import Sequence

    from moiety.cluster.cluster import Cluster
    from moiety.plan import Basis, Pool
    from moiety.projection.scenario import Scenario

_STRENGTH: tuple[Basis, ...] = ("computed", "measured", "datasheet", "fitted", "assumed")
"""From the most certain to the least: a law fitted on measurements is less certain than what it is fitted on."""
_FITTED_ARCHITECTURES = frozenset({"hopper"})
_TIMED_FIELDS = frozenset({"architecture", "memory_bandwidth", "num_sms", "peak"})
"""Fields of a device that its times depend on."""
_POWERED_FIELDS = frozenset({"max_power"})
_TIER = re.compile(r"^tiers(?:\[([0-9]+)\])?")


def weakest(*bases: Basis) -> Basis:
    """Return the least certain of the bases."""
    return max(bases, key=_STRENGTH.index)


def routing_basis(scenario: Scenario, pool: Pool) -> Basis:
    """Return what the rows between experts' GPUs rest on: `measured` on a trace, or computed for uniform routing.

    Where measured loads say that routing is not uniform, but not which experts a token takes together on this pool's
    GPUs, uniform routing is an assumption.
    """
    placement = pool.placement
    if scenario.expert_shares is None or placement is None or pool.strategy.ep == 1:
        return "computed"
    traffic = placement.traffic
    if traffic is not None and is_measured(traffic, pool.strategy, scenario.cluster, pool.first_rank):
        return "measured"
    return "assumed"


def provenance(scenario: Scenario, pools: Sequence[Pool]) -> dict[str, Basis]:
    """Return what each figure of a projection of these pools rests on.

    An assumption about the cluster counts where the figure depends on it: links only where there are such links.
    """
    cluster, calibration = scenario.cluster, scenario.calibration
    kernels: Basis = "fitted" if cluster.device.architecture in _FITTED_ARCHITECTURES else "assumed"
    bases: list[Basis] = [routing_basis(scenario, pool) for pool in pools]
    routed = weakest(*bases)
    machine = weakest(kernels, routed, _hardware(cluster, _TIMED_FIELDS, links=True))
    timing = weakest(machine, calibration.engines[scenario.engine].basis)
    power = weakest(machine, calibration.power.basis, _hardware(cluster, _POWERED_FIELDS, links=False))
    return {
        "throughput_tokens_per_s": timing,
        "throughput_tokens_per_s_per_gpu": timing,
        "ttft_s": timing,
        "tpot_s": timing,
        "step_s": timing,
        "model_flops_utilization": timing,
        "exposed_communication_fraction": machine,
        "overlap_fraction": machine,
        "memory_bytes_per_gpu": "computed",
        "cross_node_bytes_per_token": routed,
        "power_w_per_gpu": power,
        "tokens_per_joule": weakest(power, timing),
    }


def _hardware(cluster: Cluster, fields: frozenset[str], *, links: bool) -> Basis:
    """Return `assumed` where one of the device's `fields`, or a tier of links beyond the first, is an assumption."""
    for assumption in cluster.assumptions:
        names = assumption.partition(":")[0].removeprefix("device.").split(", ")
        if fields.intersection(names):
            return "assumed"
        tier = _TIER.match(names[0])
        if links and tier and (int(tier[1]) if tier[1] else 1) < len(cluster.tiers):
            return "assumed"
    return "datasheet"
