"""The plain placement: experts in order over the ranks; redundant slots hold copies of the next ranks' experts."""

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
    """Return the placement with the experts in order over the expert ranks, and each rank's copies after its own.

    `num_experts + redundant_experts` must divide over the expert ranks.
    """
    row = linear_row(num_experts, num_experts + redundant_experts, num_gpus // expert_tp)
    return Placement(
        method="linear",
        layers=tuple(layers),
        physical_to_logical_map=(row,) * len(layers),
        num_gpus=num_gpus,
        num_nodes=num_nodes,
        num_logical_experts=num_experts,
        expert_tp=expert_tp,
    )


def linear_row(num_experts: int, num_slots: int, num_ranks: int) -> tuple[int, ...]:
    """Return a layer's experts by slot: in order over the ranks, each rank's copies after its own.

    Without redundancy this is the initial map of vLLM and SGLang. The redundant slots of a rank copy the first slots of
    the ranks after it (chained declustering, Hsiao and DeWitt 1990): more redundancy only adds copies, every rank gets
    as many, and none holds an expert twice. `num_slots` must divide over the ranks.
    """
    slots, rest = divmod(num_slots, num_ranks)
    assert rest == 0, "slots divide over the expert ranks"
    own = -(-num_experts // num_ranks)
    return tuple((rank * own + slot) % num_experts for rank in range(num_ranks) for slot in range(slots))
