"""The same kind of cluster with another number of GPUs."""

from __future__ import annotations

from moiety.cluster.cluster import MAX_GPUS, Cluster
from moiety.errors import InputError


def resized(cluster: Cluster, num_gpus: int) -> Cluster:
    """Return `cluster` with `num_gpus` GPUs of the same nodes and links: part of one node, or whole nodes.

    The outermost tier grows or shrinks with it; tiers that would join nothing are left out. Raises InputError with the
    nearest counts where nodes or link domains would be cut.
    """
    node = cluster.gpus_per_node
    widest = max([node, *(tier.num_gpus for tier in cluster.tiers[:-1])])
    step = 1 if num_gpus <= node else node if num_gpus <= widest else widest
    if num_gpus % step or not 0 < num_gpus <= MAX_GPUS:
        below = max(min(num_gpus, MAX_GPUS) // step * step, step)
        rule = f"{cluster.name} comes in nodes of {node} GPUs" + (f" and domains of {widest}" if widest > node else "")
        raise InputError(rule, field="gpus", value=num_gpus, remedy=f"try {below} or {below + step}")
    inner = [tier for tier in cluster.tiers[:-1] if tier.num_gpus < num_gpus]
    closing = next((tier for tier in cluster.tiers if tier.num_gpus >= num_gpus), cluster.tiers[-1])
    tiers = (*inner, closing.model_copy(update={"num_gpus": num_gpus}))
    return Cluster(
        name=f"{cluster.name} resized to {num_gpus} GPUs" if num_gpus != cluster.num_gpus else cluster.name,
        device=cluster.device,
        num_nodes=max(num_gpus // node, 1),
        gpus_per_node=min(node, num_gpus),
        tiers=tiers,
        source=cluster.source,
        assumed=cluster.assumed,
    )
