"""What a placement method is given: the experts' loads, the machine's shape, and where known the tokens' choices."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from moiety.errors import InputError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from moiety.workload.routing import Routing

    Loads = NDArray[np.float64]
    SlotMap = NDArray[np.int64]
    """Logical expert of each physical slot, [layers, slots]; slot p is on GPU p // (slots / gpus)."""


@dataclass(frozen=True, slots=True, eq=False)
class PlacementProblem:
    """The experts of some layers, to be placed on the slots of `num_gpus` GPUs in `num_nodes` nodes.

    Where experts are tensor-parallel a "GPU" here is the group of GPUs that share its experts. A node is what one row
    of a hierarchical dispatch reaches: the innermost domain of links.
    """

    counts: Loads
    """Tokens sent to each expert, [windows, layers, experts]."""
    num_gpus: int
    num_nodes: int
    num_slots: int
    """Physical slots of a layer."""
    topk: NDArray[np.integer[Any]] | None = None
    """Experts that each token went to, [layers, tokens, k]; None where only counts are known."""
    num_groups: int = 1
    """Consecutive groups of experts that a node-limited router chooses from."""
    gpu_speed: Loads | None = None
    """Relative speed of each GPU, [gpus]; None where all are alike."""
    node_distance: Loads | None = None
    """Cost of a row from node to node, [nodes, nodes], 0 on the diagonal; None where all links are alike."""

    @property
    def num_layers(self) -> int:
        """Layers to place."""
        return self.counts.shape[1]

    @property
    def num_experts(self) -> int:
        """Logical experts of a layer."""
        return self.counts.shape[2]

    @property
    def slots_per_gpu(self) -> int:
        """Physical slots of a layer on each GPU."""
        return self.num_slots // self.num_gpus

    @property
    def slots_per_node(self) -> int:
        """Physical slots of a layer on each node."""
        return self.num_slots // self.num_nodes

    @property
    def gpus_per_node(self) -> int:
        """GPUs of a node."""
        return self.num_gpus // self.num_nodes

    def speed(self) -> Loads:
        """Return each GPU's speed relative to the mean, [gpus]."""
        if self.gpu_speed is None:
            return np.ones(self.num_gpus)
        return self.gpu_speed * (self.num_gpus / self.gpu_speed.sum())

    def shares(self) -> Loads:
        """Return each expert's share of its layer's tokens by window, [windows, layers, experts]; rows sum to 1.

        A layer without tokens in a window says nothing of that window: it takes the layer's mean over the others, and
        equal shares where no window has tokens.
        """
        totals = self.counts.sum(axis=2, keepdims=True)
        shares = np.divide(self.counts, totals, out=np.zeros_like(self.counts), where=totals > 0)
        seen = (totals > 0).sum(axis=0)  # [layers, 1]
        mean = np.where(seen > 0, shares.sum(axis=0) / np.maximum(seen, 1), 1.0 / self.num_experts)
        return np.where(totals > 0, shares, mean[None])


def placement_problem(  # noqa: PLR0913 - a machine has as many properties as it has
    routing: Routing,
    *,
    num_gpus: int,
    num_nodes: int = 1,
    num_slots: int | None = None,
    num_groups: int = 1,
    gpu_speed: Loads | None = None,
    node_distance: Loads | None = None,
    source: str | None = None,
) -> PlacementProblem:
    """Return the problem of placing a dump's experts; `num_slots` defaults to the fewest that divide over the GPUs.

    Raises InputError where the slots cannot hold every expert, do not divide over the GPUs, or the shapes disagree.
    """
    experts = routing.num_experts
    if num_gpus < 1 or num_nodes < 1 or num_gpus % num_nodes:
        raise InputError("GPUs must divide over nodes", field="nodes", value=num_nodes, remedy=f"--gpus is {num_gpus}")
    slots = -(-experts // num_gpus) * num_gpus if num_slots is None else num_slots
    if slots < experts:
        rule = f"cannot hold {experts} experts"
        remedy = f"at least {-(-experts // num_gpus) * num_gpus}"
        raise InputError(rule, source=source, field="slots", value=slots, remedy=remedy)
    if slots % num_gpus:
        low = max(slots // num_gpus, -(-experts // num_gpus)) * num_gpus
        remedy = f"try {low} or {low + num_gpus}"
        raise InputError(f"must divide over {num_gpus} GPUs", field="slots", value=slots, remedy=remedy)
    if slots // num_gpus > experts:
        rule = f"gives each GPU {slots // num_gpus} slots, more than there are experts ({experts})"
        raise InputError(rule, field="slots", value=slots, remedy=f"at most {experts * num_gpus}")
    if experts % num_groups:
        raise InputError(f"must divide {experts} experts", field="groups", value=num_groups)
    _check_machine(gpu_speed, node_distance, num_gpus, num_nodes)
    return PlacementProblem(
        counts=routing.counts,
        num_gpus=num_gpus,
        num_nodes=num_nodes,
        num_slots=slots,
        topk=routing.topk,
        num_groups=num_groups,
        gpu_speed=gpu_speed,
        node_distance=node_distance,
    )


def _check_machine(speed: Loads | None, distance: Loads | None, num_gpus: int, num_nodes: int) -> None:
    if speed is not None and not (
        speed.shape == (num_gpus,) and bool(np.isfinite(speed).all()) and float(speed.min()) > 0
    ):
        raise InputError(f"must be {num_gpus} positive numbers, one a GPU", field="gpu-speed")
    if distance is not None and not (
        distance.shape == (num_nodes, num_nodes)
        and bool(np.isfinite(distance).all())
        and float(distance.min()) >= 0
        and not distance.diagonal().any()
    ):
        raise InputError(f"must be {num_nodes} x {num_nodes} costs >= 0, 0 on the diagonal", field="node-distance")
