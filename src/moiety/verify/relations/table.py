"""The rules of the audit, in the order in which they are applied."""

from __future__ import annotations

from typing import TYPE_CHECKING

from moiety.verify.relations import (
    communication,
    energy,
    hardware,
    latency,
    memory,
    modules,
    scaling,
    throughput,
    utilization,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from moiety.verify.case import AuditCase
    from moiety.verify.observation import Observation

RELATIONS: tuple[Callable[[AuditCase], Iterator[Observation]], ...] = (
    utilization.work_per_token,
    utilization.throughput_follows_utilization,
    utilization.achieved_rate,
    utilization.occupancy,
    utilization.simulated_utilization,
    utilization.beyond_published,
    utilization.compute_headroom,
    throughput.ratios,
    throughput.simulated_throughput,
    throughput.impossible_throughput,
    throughput.baselines,
    latency.reciprocal_of_throughput,
    latency.all_reduce,
    hardware.described_by_cluster,
    hardware.link_bandwidth,
    hardware.effective_bandwidth,
    memory.memory_per_gpu,
    memory.shares_of_memory,
    memory.checkpointing,
    modules.degrees,
    modules.modules,
    modules.experts_per_gpu,
    modules.consecutive_experts,
    modules.imbalance,
    communication.hidden_communication,
    communication.cross_node_traffic,
    energy.power_cut,
    scaling.scaling,
    scaling.supported_size,
)
