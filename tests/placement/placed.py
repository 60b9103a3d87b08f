"""Random slot maps with traces for the laws of serving, traffic and metrics."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from hypothesis import strategies as st

from moiety.placement.problem import PlacementProblem

if TYPE_CHECKING:
    from numpy.typing import NDArray


def problem_of(
    topk: NDArray[Any],
    *,
    num_experts: int,
    num_gpus: int,
    num_nodes: int,
    num_slots: int,
    node_distance: NDArray[np.float64] | None = None,
) -> PlacementProblem:
    counts = np.stack([np.bincount(layer.ravel(), minlength=num_experts) for layer in topk])[None]
    return PlacementProblem(
        counts=counts.astype(np.float64),
        num_gpus=num_gpus,
        num_nodes=num_nodes,
        num_slots=num_slots,
        topk=topk,
        node_distance=node_distance,
    )


@st.composite
def placed_traces(
    draw: st.DrawFn, *, max_nodes: int = 5, max_k: int = 5, copies: bool = True, distances: bool = True
) -> tuple[PlacementProblem, NDArray[np.int64]]:
    """Draw a machine, a trace and a map that holds every expert; a GPU may hold an expert twice."""
    nodes = draw(st.integers(1, max_nodes))
    gpus = nodes * draw(st.integers(1, 3))
    layers, slots_per_gpu, k = draw(st.integers(1, 2)), draw(st.integers(1, 4)), draw(st.integers(1, max_k))
    slots = gpus * slots_per_gpu
    experts = draw(st.integers(1, slots)) if copies else slots
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    k = min(k, experts)
    topk = random.random((layers, draw(st.integers(1, 30)), experts)).argsort(axis=2)[:, :, :k]
    extra = random.integers(0, experts, (layers, slots - experts))
    slot_map = np.concatenate([np.tile(np.arange(experts), (layers, 1)), extra], axis=1)
    slot_map = random.permuted(slot_map, axis=1)
    distance = None
    if distances and draw(st.booleans()):
        distance = random.integers(0, 3, (nodes, nodes)) * (1.0 - np.eye(nodes))
    problem = problem_of(
        topk, num_experts=experts, num_gpus=gpus, num_nodes=nodes, num_slots=slots, node_distance=distance
    )
    return problem, slot_map


def by_gpu(problem: PlacementProblem, slot_map: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the map as [layers, nodes, GPUs of a node, slots of a GPU]."""
    return slot_map.reshape(slot_map.shape[0], problem.num_nodes, problem.gpus_per_node, problem.slots_per_gpu)
