"""Measured times of dispatch and combine: which row of the tables an exchange is, and what the law says of the rest."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from moiety.cost.expert_exchange import exchange_transfer

if TYPE_CHECKING:
    from collections.abc import Iterator

    from moiety.calibration.calibration import Calibration
    from moiety.calibration.tables import Key, MeasuredRates
    from moiety.cluster.cluster import Cluster
    from moiety.cost.collective import Transfer
    from moiety.graph.graph import Graph
    from moiety.graph.op import Collective
    from moiety.model.feed_forward import MoeFeedForward
    from moiety.placement.serving.routed_traffic import RoutedTraffic


def table_exchange(  # noqa: PLR0913 - the nouns that decide an exchange
    work: Collective,
    moe: MoeFeedForward,
    graph: Graph,
    cluster: Cluster,
    calibration: Calibration,
    *,
    decode: bool,
    load: float = 1.0,
    first_rank: int = 0,
    traffic: RoutedTraffic | None = None,
) -> tuple[Transfer, bool] | None:
    """Return the time of a dispatch or combine from what was measured, and whether it is as measured.

    None where nothing was measured over as many ranks that lie on as many nodes: a time from inside a node says nothing
    of the network. Tables hold uniform routing on a machine of their rates; a busiest rank, a placement's traffic and
    slower links change the time as the law says.
    """
    layout, tables = graph.layout, calibration.tables
    strategy = layout.strategy
    if tables is None or layout.options.redundant_experts or strategy.tp > 1 or strategy.etp > 1:
        return None
    dtypes = layout.options.dtypes
    dtype = dtypes.dispatch if work.kind == "dispatch" else dtypes.combine
    shape = (dtype, moe.row_size(graph.model.hidden_size), moe.top_k, moe.num_experts)
    ranks = tuple(range(first_rank, first_rank + strategy.ep))
    keys = _keys(work.kind, "decode" if decode else "prefill", shape, ranks, cluster)
    seconds = next((each for key in keys if (each := tables.seconds(key, work.tokens)) is not None), None)
    if seconds is None:
        return None
    law = exchange_transfer(
        work, moe, strategy, cluster, calibration, decode=decode, load=load, first_rank=first_rank, traffic=traffic
    )
    theirs = _as_fast_as(tables.rates, cluster)
    as_measured = load == 1 and traffic is None and theirs is cluster
    if not as_measured:
        plain = exchange_transfer(work, moe, strategy, theirs, calibration, decode=decode, first_rank=first_rank)
        seconds *= law.seconds / plain.seconds
    busy = tuple(each * seconds / law.seconds for each in law.tier_seconds)
    return replace(law, seconds=seconds, tier_seconds=busy), as_measured


def _keys(
    kind: str, phase: str, shape: tuple[str | int, ...], ranks: tuple[int, ...], cluster: Cluster
) -> Iterator[Key]:
    """Yield what tables may call an exchange: of whole nodes, of ranks on so many nodes, of ranks in one domain."""
    nodes = len({cluster.node_of(rank) for rank in ranks})
    if len(ranks) == nodes * cluster.gpus_per_node:
        yield (kind, phase, *shape, "nodes", nodes)
    yield (kind, phase, *shape, "ranks", len(ranks), nodes)
    if cluster.tier_of_group(ranks) == 0:
        yield (kind, "any", *shape, "domain", len(ranks))


def _as_fast_as(rates: MeasuredRates, cluster: Cluster) -> Cluster:
    """Return the cluster with the links of the tables' machine: itself where they are the same."""
    measured = (rates.link_bytes_per_s, *rates.outer_bytes_per_s)
    tiers = tuple(
        tier.model_copy(update={"bandwidth_bytes_per_s": tier.bandwidth_bytes_per_s * rate / here})
        if (here := cluster.bandwidth_per_gpu(number)) != rate
        else tier
        for number, (tier, rate) in enumerate(zip(cluster.tiers, measured, strict=False))
    )
    if tiers == cluster.tiers[: len(tiers)]:
        return cluster
    return cluster.model_copy(update={"tiers": (*tiers, *cluster.tiers[len(tiers) :])})
