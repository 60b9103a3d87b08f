"""Time of dispatch and combine."""

from __future__ import annotations

from typing import TYPE_CHECKING

from moiety.cost.collective import Transfer
from moiety.cost.expert_traffic import rows_per_token

if TYPE_CHECKING:
    from moiety.calibration.calibration import Calibration
    from moiety.cluster.cluster import Cluster
    from moiety.graph.op import Collective
    from moiety.model.feed_forward import MoeFeedForward
    from moiety.placement.serving.routed_traffic import RoutedTraffic
    from moiety.strategy.strategy import Strategy


def exchange_transfer(  # noqa: PLR0913 - the nouns that decide an exchange
    work: Collective,
    moe: MoeFeedForward,
    strategy: Strategy,
    cluster: Cluster,
    calibration: Calibration,
    *,
    decode: bool,
    load: float = 1.0,
    first_rank: int = 0,
    traffic: RoutedTraffic | None = None,
) -> Transfer:
    """Return the time of one dispatch or combine of `work.tokens` tokens a group.

    Tiers work at the same time, so the slowest sets the pace: `latency + max over tiers of rows x row_bytes / rate`.
    `load` is the busiest rank's share of the rows relative to the mean: what it must receive (dispatch) or send back.
    `traffic` is what a trace's tokens reach under the placement; None: routing is uniform.
    Latencies: low-latency kernels of DeepEP over the network, one-sided exchange inside an NVLink domain.
    """
    constants = calibration.expert_exchange
    rows = rows_per_token(moe, strategy, cluster, work.method, first_rank, traffic)
    tier_bytes = tuple(each * work.tokens * work.payload_bytes for each in rows)
    tier_seconds: list[float] = []
    for tier, sent in enumerate(tier_bytes):
        reached = constants.domain_efficiency
        if tier:
            reached = constants.decode_network_efficiency if decode else constants.network_efficiency
        tier_seconds.append(sent * load / (cluster.bandwidth_per_gpu(tier) * reached))
    crosses = any(sent > 0 for sent in tier_bytes[1:])
    if work.kind == "dispatch":
        latency = constants.dispatch_latency_s if crosses else constants.domain_dispatch_latency_s
    elif crosses:
        wide = strategy.ep >= constants.wide_ranks
        latency = constants.combine_latency_wide_s if wide else constants.combine_latency_s
    else:
        latency = constants.domain_combine_latency_s
    outermost = max((tier for tier, sent in enumerate(tier_bytes) if sent > 0), default=0)
    latency += 2 * cluster.tiers[outermost].latency_s if outermost > 1 else 0.0
    return Transfer(latency + max(tier_seconds), tuple(tier_seconds), tier_bytes, pipelined=True)
