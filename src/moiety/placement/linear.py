"""The plain placement: experts in order over the ranks; redundant slots hold the first experts once more."""

from __future__ import annotations

from typing import TYPE_CHECKING

from moiety.placement.placement import Placement

if TYPE_CHECKING:
    from collections.abc import Sequence


def place_linear(
    *,
    layers: Sequence[int],
    num_experts: int,
    redundant_experts: int,
    num_gpus: int,
    num_nodes: int,
    expert_tp: int,
) -> Placement:
    """Return the placement with expert e in slot e and the redundant slots filled with experts 0, 1, ... again.

    This is the initial map of vLLM and SGLang. `num_experts + redundant_experts` must divide over the expert ranks.
    """
    row = tuple(slot % num_experts for slot in range(num_experts + redundant_experts))
    return Placement(
        method="linear",
        layers=tuple(layers),
        physical_to_logical_map=(row,) * len(layers),
        num_gpus=num_gpus,
        num_nodes=num_nodes,
        num_logical_experts=num_experts,
        expert_tp=expert_tp,
    )
