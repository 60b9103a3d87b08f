"""What each projected figure rests on: the weakest of its inputs."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from moiety.calibration.calibration import weakest
from moiety.cost.expert_traffic import is_measured
from moiety.cost.roofline import roofline_kind
from moiety.graph.op import Collective, MemoryPass

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from moiety.calibration.calibration import Basis, Calibration, Sourced
    from moiety.cluster.cluster import Cluster
    from moiety.graph.graph import Graph
    from moiety.graph.op import Op
    from moiety.plan import Pool
    from moiety.projection.scenario import Scenario
    from moiety.projection.step import StepOutcome

_TIMED_FIELDS = frozenset({"architecture", "memory_bandwidth", "peak"})
"""Fields of a device that its times depend on."""
_POWERED_FIELDS = frozenset({"max_power"})
_TIER = re.compile(r"^tiers(?:\[([0-9]+)\])?")


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


def provenance(scenario: Scenario, pools: Sequence[Pool], outcomes: Sequence[StepOutcome]) -> dict[str, Basis]:
    """Return what each figure of a projection of these pools, whose steps came to `outcomes`, rests on.

    An assumption about the cluster counts where the figure depends on it: links only where there are such links.
    """
    cluster, calibration = scenario.cluster, scenario.calibration
    architecture = cluster.device.architecture
    bases: list[Basis] = [routing_basis(scenario, pool) for pool in pools]
    routed = weakest(*bases)
    graphs = [each.graph for each in outcomes]
    by_law = [op for each in outcomes for op in (each.coverage.by_law if each.coverage else each.graph.ops)]
    used = _constants_used(calibration, by_law)
    machine = weakest("measured", routed)  # of constants and of the machine's rates only what a law was asked for
    if used or calibration.tables is None:
        rates = _hardware(cluster, _timed_fields(scenario, graphs), links=True)
        machine = weakest(calibration.basis_on(architecture, *used), routed, rates)
    timing = weakest(machine, scenario.overheads.basis)
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


def _constants_used(calibration: Calibration, ops: Iterable[Op]) -> tuple[Sourced, ...]:
    """Return the constants of the kernels and transfers among ops; passes over memory are too short to count."""
    used: dict[str, Sourced] = {}
    for op in ops:
        if isinstance(op.work, Collective):
            exchanged = op.work.kind in {"dispatch", "combine"}
            constants = calibration.expert_exchange if exchanged else calibration.collectives
            used["exchange" if exchanged else "collective"] = constants
        elif not isinstance(op.work, MemoryPass):
            kind = roofline_kind(op.work)
            used[kind] = calibration.roofline[kind]
    return tuple(used.values())


def _timed_fields(scenario: Scenario, graphs: Sequence[Graph]) -> frozenset[str]:
    """Return the fields of the device that the times of the steps depend on."""
    device, exchange = scenario.cluster.device, scenario.calibration.expert_exchange
    fields = set(_TIMED_FIELDS)
    for graph in graphs:
        dtypes = graph.layout.options.dtypes
        fields |= {
            f"peak.{device.compute_dtype(each)}" for each in (dtypes.weights, dtypes.experts, dtypes.activations)
        }
    if exchange.communication_sms or exchange.decode_communication_sms:
        fields.add("num_sms")
    return frozenset(fields)


def _hardware(cluster: Cluster, fields: frozenset[str], *, links: bool) -> Basis:
    """Return `assumed` where one of the device's `fields`, or a tier of links beyond the first, is an assumption."""
    for assumption in cluster.assumptions:
        names = assumption.partition(":")[0].removeprefix("device.").split(", ")
        if fields.intersection(names):
            return "assumed"
        tier = _TIER.match(names[0])
        if links and tier and (int(tier[1]) if tier[1] else 1) < len(cluster.tiers):
            return "assumed"
    return cluster.basis
