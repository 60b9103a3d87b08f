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

    Without redundancy this is the initial map of vLLM and SGLang. The j-th redundant slot of a rank copies the j-th
    slot of the rank after it (chained declustering, Hsiao and DeWitt 1990): more redundancy only adds copies, and every
    rank gets as many. `num_experts + redundant_experts` must divide over the expert ranks.
    """
    ranks = num_gpus // expert_tp
    slots, rest = divmod(num_experts + redundant_experts, ranks)
    assert rest == 0, "slots divide over the expert ranks"
    own = -(-num_experts // ranks)
    row = tuple(
        (((rank + slot // own) % ranks) * own + slot % own) % num_experts
        for rank in range(ranks)
        for slot in range(slots)
    )
    return Placement(
        method="linear",
        layers=tuple(layers),
        physical_to_logical_map=(row,) * len(layers),
        num_gpus=num_gpus,
        num_nodes=num_nodes,
        num_logical_experts=num_experts,
        expert_tp=expert_tp,
    )
