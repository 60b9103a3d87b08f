"""The same kind of cluster with another number of GPUs."""

from __future__ import annotations

from moiety.cluster.cluster import MAX_GPUS, Cluster, LinkTier
from moiety.errors import InputError


def resized(cluster: Cluster, num_gpus: int) -> Cluster:
    """Return `cluster` with `num_gpus` GPUs of the same nodes and links: part of one node, or whole nodes.

    Tiers keep their reach, and what joins the whole cluster grows or shrinks with it. Raises InputError with the
    nearest counts where nodes or link domains would be cut, or where no tier of links joins so many.
    """
    if num_gpus == cluster.num_gpus:
        return cluster
    node, chain = cluster.gpus_per_node, (*cluster.tiers, *cluster.beyond)
    widest = max([node, *(tier.reach for tier in chain if tier.reach is not None)])
    step = 1 if num_gpus <= node else node if num_gpus <= widest else widest
    if num_gpus % step or not 0 < num_gpus <= MAX_GPUS:
        below = max(min(num_gpus, MAX_GPUS) // step * step, step)
        rule = f"{cluster.name} comes in nodes of {node} GPUs" + (f" and domains of {widest}" if widest > node else "")
        raise InputError(rule, field="gpus", value=num_gpus, remedy=f"try {below} or {below + step}")
    tiers: list[LinkTier] = []
    beyond: list[LinkTier] = []
    for tier in chain:
        span = min(tier.reach or num_gpus, num_gpus)
        joins = not tiers or span > tiers[-1].num_gpus
        (tiers if joins else beyond).append(tier.model_copy(update={"num_gpus": span}))
    if tiers[-1].num_gpus < num_gpus:
        rule = f"the links of {cluster.name} join {tiers[-1].num_gpus} GPUs at most"
        raise InputError(rule, field="gpus", value=num_gpus, remedy="add a tier with `spans: cluster` to its file")
    return Cluster(
        name=f"{cluster.name} resized to {num_gpus} GPUs",
        device=cluster.device,
        num_nodes=max(num_gpus // node, 1),
        gpus_per_node=min(node, num_gpus),
        tiers=tuple(tiers),
        beyond=tuple(beyond),
        source=cluster.source,
        basis=cluster.basis,
        assumed=cluster.assumed,
    )
