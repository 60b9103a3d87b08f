"""A reference for traffic: experts divided over nodes by Mt-KaHyPar, a hypergraph partitioner made for this cost.

Experts are the hypergraph's nodes, tokens its nets; a net that touches lambda parts costs lambda - 1 (`km1`). A token
whose home is uniform over N nodes reaches lambda (1 - 1/N) remote nodes in the mean, so that without copies

    remote nodes per token = (km1 / tokens + 1) (1 - 1/N).

Gottesbueren, Heuer, Maas, Sanders, Schlag: "Scalable High-Quality Hypergraph Partitioning", ACM TALG 2024.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

import mtkahypar
import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

_SEED = 5
_MAX_WEIGHT = 100_000


@cache
def _partitioner() -> Any:  # noqa: ANN401 - a compiled module without types
    return mtkahypar.initialize(1, False)  # noqa: FBT003 - its second parameter, print_warnings, has no name


def _hypergraph(topk: NDArray[Any], weights: list[int], num_nodes: int, slack: float) -> tuple[Any, Any]:
    """Return the context and the hypergraph of one layer's tokens [tokens, k]; equal sets are one net, weighted."""
    mtkahypar.set_seed(_SEED)
    context = _partitioner().context_from_preset(mtkahypar.PresetType.DETERMINISTIC_QUALITY)
    context.set_partitioning_parameters(num_nodes, slack, mtkahypar.Objective.KM1)
    context.logging = False
    nets, times = np.unique(np.sort(topk, axis=1), axis=0, return_counts=True)
    graph = _partitioner().create_hypergraph(context, len(weights), len(nets), nets.tolist(), weights, times.tolist())
    return context, graph


def partition_cost(topk: NDArray[Any], node: NDArray[np.int64], num_nodes: int) -> int:
    """Return `km1` of one layer's tokens [tokens, k] where `node` [experts] says where each expert is."""
    context, graph = _hypergraph(topk, [1] * node.size, num_nodes, float(num_nodes))
    return int(graph.create_partitioned_hypergraph(context, num_nodes, node.tolist()).km1())


def reference_partition(
    topk: NDArray[Any], *, num_experts: int, num_nodes: int, slack: float | None = None
) -> NDArray[np.int64]:
    """Return the node of each expert of one layer, [experts], of least `km1` that the partitioner finds.

    `slack` is how far a node's load may be above the mean, with any number of experts on it; None asks for equally
    many experts on each node, whatever their load.
    """
    counts = np.bincount(topk.ravel(), minlength=num_experts)
    scale = max(counts.sum() / _MAX_WEIGHT, 1.0)
    weights = [1] * num_experts if slack is None else np.maximum(counts / scale, 1).astype(int).tolist()
    context, graph = _hypergraph(topk, weights, num_nodes, 0.0 if slack is None else slack)
    return np.array(graph.partition(context).get_partition(), dtype=np.int64)


def remote_nodes(cost: int, num_tokens: int, num_nodes: int) -> float:
    """Return the mean of remote nodes per token with uniform homes, without copies, of a partition's `km1`."""
    return (cost / num_tokens + 1) * (1 - 1 / num_nodes)
