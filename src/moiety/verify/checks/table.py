"""All checks, in their order: first what needs the plan alone, then what evaluates it again."""

from __future__ import annotations

from typing import TYPE_CHECKING

from moiety.verify.checks import (
    balance,
    cross_node,
    hardware,
    memory,
    performance,
    precedent,
    provenance,
    routed_traffic,
    simulation,
    structure,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from moiety.verify.findings import Finding
    from moiety.verify.inspection import Inspection

    Check = Callable[[Inspection], Iterator[Finding]]

STRUCTURE: tuple[Check, ...] = (
    hardware.gpu_count,
    hardware.pool_roles,
    hardware.groups_tile_ranks,
    hardware.division_rules,
    hardware.module_division,
    hardware.links,
    hardware.number_formats,
    structure.placement_shape,
    structure.every_expert_lives,
    structure.copies_apart,
    structure.coverage,
    structure.work_is_scheduled,
)
"""What must hold before anything about the plan can be computed."""
FIGURES: tuple[Check, ...] = (
    balance.expert_load,
    balance.stage_balance,
    memory.parts,
    memory.total,
    memory.arena,
    performance.speed_of_light,
    performance.figures_agree,
    performance.objective,
    cross_node.cross_node_bytes,
    routed_traffic.routed_traffic,
    precedent.utilization,
    simulation.timelines,
    simulation.reproduces,
    simulation.network_matters,
    provenance.provenance,
    provenance.assumptions,
)
