"""The shape of the GPUs of a pipeline stage, as far as the placement of its experts depends on it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class StageShape:
    """GPUs of a stage in nodes and domains of links, with the slots of its experts; placements are alike for like ones.

    An expert rank is the group of `expert_tp` GPUs that share its experts.
    """

    layers: tuple[int, ...]
    """Index in the model of each MoE layer."""
    num_experts: int
    num_slots: int
    """Physical slots of a layer."""
    num_gpus: int
    num_nodes: int
    """Nodes that the stage covers, 1 where it does not cover whole ones."""
    expert_tp: int = 1
    domain_gpus: tuple[int, ...] | None = ()
    """GPUs of the domains that each tier of links joins, narrower than the stage, the narrowest first. None where an
    expert's GPUs do not lie in one domain: then traffic is not measured and the methods see one node."""
    num_groups: int = 1
    """Groups of experts that a node-limited router chooses from."""
    domain_distance: tuple[tuple[float, ...], ...] | None = None
    """Cost of a row between the narrowest domains; None where all are alike."""

    @property
    def num_ranks(self) -> int:
        """Expert ranks: what a placement method takes for GPUs."""
        return self.num_gpus // self.expert_tp

    @property
    def num_domains(self) -> int:
        """Innermost domains of links: what a placement method takes for nodes."""
        return self.num_gpus // self.domain_gpus[0] if self.domain_gpus else 1
