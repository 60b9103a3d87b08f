"""The exchanges by name, each over the groups that it sends over."""

from __future__ import annotations

from typing import TYPE_CHECKING

from moiety.runtime.comm.priority import Priority
from moiety.runtime.dispatch.deep_ep import DeepEpExchange, check_deep_ep
from moiety.runtime.dispatch.direct import DirectExchange
from moiety.runtime.dispatch.exchange import HierarchicalGroups
from moiety.runtime.dispatch.hierarchical import NUM_CHUNKS, HierarchicalExchange

if TYPE_CHECKING:
    import torch

    from moiety.plan import AllToAll
    from moiety.runtime.comm.group import Group
    from moiety.runtime.comm.network import Network
    from moiety.runtime.dispatch.exchange import Exchange, StageShape


def exchange_over(
    method: AllToAll,
    stage: StageShape,
    network: Network,
    ranks: tuple[int, ...],
    formats: tuple[torch.dtype, torch.dtype],
    *,
    num_chunks: int = NUM_CHUNKS,
) -> Exchange:
    """Return the exchange of that name over the stage's `ranks`, in order; all of them call it alike.

    `formats` are those of dispatch and combine. Where the stage lies in one node, hierarchical is dedup.
    """
    if network.transport == "deep_ep":
        check_deep_ep(stage, formats[0], network.device)
        return DeepEpExchange(stage, network.library_group(ranks))

    def group(label: str, members: tuple[int, ...]) -> Group:
        return network.group(members, label, Priority.EXCHANGE)

    if method != "hierarchical" or stage.num_nodes == 1:
        whole, counts = group("stage", ranks), group("counts", ranks)
        return DirectExchange(stage, whole, counts, formats, dedup=method != "flat")
    width = stage.gpus_per_node
    first = stage.index // width * width
    node, rail = ranks[first : first + width], ranks[stage.index % width :: width]
    groups = HierarchicalGroups(
        rail=group("rail", rail),
        node=group("node", node),
        rail_counts=group("rail-counts", rail),
        node_counts=group("node-counts", node),
    )
    return HierarchicalExchange(stage, groups, formats, num_chunks=num_chunks)
