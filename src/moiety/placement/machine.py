"""What a cluster's links and memory, and a model's weights, mean for placement: distances and the slots that fit."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from moiety.dtypes import BYTES_PER_ELEMENT

if TYPE_CHECKING:
    from moiety.cluster.cluster import Cluster
    from moiety.model.model import Model
    from moiety.placement.problem import Loads


def num_link_domains(cluster: Cluster) -> int:
    """Return the number of innermost link domains: the nodes of a placement."""
    return cluster.num_gpus // cluster.fast_domain_gpus


def node_distance(cluster: Cluster) -> Loads | None:
    """Return the cost of a row from one innermost domain to another, [nodes, nodes]; None where all are alike.

    A row over the nearest tier outside a node costs 1, one that crosses slower tiers in proportion to the slowest.
    """
    rates = [cluster.bandwidth_per_gpu(tier) for tier in range(1, len(cluster.tiers))]
    costs = np.maximum.accumulate([rates[0] / rate for rate in rates]) if rates else np.ones(0)
    if (costs == 1.0).all():
        return None
    distance = np.zeros((num_link_domains(cluster),) * 2)
    first_gpu = np.arange(distance.shape[0]) * cluster.fast_domain_gpus
    for cost, tier in zip(costs[::-1], cluster.tiers[:0:-1], strict=True):  # the outermost first
        domain = first_gpu // tier.num_gpus
        distance[domain[:, None] == domain[None, :]] = cost
    np.fill_diagonal(distance, 0.0)
    return distance


def expert_size_bytes(model: Model) -> int:
    """Return the bytes of one routed expert of one layer in the checkpoint's format; 0 for a dense model."""
    parameters = 0 if model.moe is None else model.moe.expert_parameters(model.hidden_size)
    return round(parameters * BYTES_PER_ELEMENT[model.expert_dtype])


def most_slots(model: Model, cluster: Cluster, expert_bytes: float) -> int:
    """Return the most slots of a layer that fit when every GPU of the cluster holds as many, in every MoE layer.

    Beside the experts each GPU holds an equal part of all other weights; caches, activations and what an engine keeps
    come on top, so this many is needed to fit but not enough.
    """
    mixtures = [block.moe for block in model.layers if block.moe is not None]
    experts = sum(each.num_experts * each.expert_parameters(model.hidden_size) for each in mixtures)
    others = (model.num_parameters - experts) * BYTES_PER_ELEMENT[model.weight_dtype]
    room = cluster.device.memory_bytes - others / cluster.num_gpus
    return max(int(room // (expert_bytes * model.num_moe_layers)), 0) * cluster.num_gpus
