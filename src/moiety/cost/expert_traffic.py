"""Rows that dispatch sends over each tier of links, by method of dispatch; exact for uniform routing."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from moiety.cluster.cluster import Cluster
    from moiety.model.feed_forward import MoeFeedForward
    from moiety.plan import AllToAll
    from moiety.strategy.strategy import Strategy


@lru_cache(maxsize=65536)
def missed_probability(pool: int, part: int, draws: int) -> float:
    """Return the chance that `draws` distinct picks out of `pool` all miss a given `part`: C(pool-part, d) / C(pool, d)."""
    if draws > pool - part:
        return 0.0
    return math.exp(sum(math.log1p(-part / (pool - index)) for index in range(draws)))


@lru_cache(maxsize=65536)
def expected_domains(moe: MoeFeedForward, domains: int) -> float:
    """Return how many of `domains` equal, consecutive shares of the experts a token's top-k reaches on average.

    Uniform routing: N (1 - C(E - E/N, k) / C(E, k)). Under group-limited routing the top-k come from `top_k_groups`
    of `num_groups` groups, and the count is averaged over the choice of groups.
    """
    experts, k, groups, chosen = moe.num_experts, moe.top_k, moe.num_groups, moe.top_k_groups
    if domains <= 1:
        return 1.0
    if groups == 1 or chosen == groups:
        share = experts / domains
        missed = missed_probability(experts, int(share), k) if share >= 1 else 1 - k / domains
        return domains * (1 - missed)
    per_group = experts // groups
    pool = chosen * per_group
    if domains >= groups:
        part = max(experts // domains, 1)
        return domains * chosen / groups * (1 - missed_probability(pool, part, k))
    held = groups // domains
    reached = 0.0
    for hit in range(1, min(held, chosen) + 1):
        chance = math.comb(held, hit) * math.comb(groups - held, chosen - hit) / math.comb(groups, chosen)
        reached += chance * (1 - missed_probability(pool, hit * per_group, k))
    return domains * reached


def rows_per_token(
    moe: MoeFeedForward, strategy: Strategy, cluster: Cluster, method: AllToAll, first_rank: int = 0
) -> tuple[float, ...]:
    """Return the rows that each GPU sends on each tier per token of its attention group, one way.

    A row crosses tier t when it leaves a domain of tier t - 1. `flat` sends one row per token and expert, `dedup`
    one per token and expert-parallel rank, `hierarchical` one per token and domain, passed on inside it. The first two
    send a row to each of the `etp` GPUs that share an expert; the third sends one and copies it behind the last slow
    link. The tokens of an attention group are divided over its `tp` GPUs.
    """
    stage = strategy.gpus_per_stage
    per_domain = [min(max(math.gcd(tier.num_gpus, stage), 1), stage) for tier in cluster.tiers]
    if first_rank % cluster.tiers[0].num_gpus and per_domain[0] == stage:
        per_domain[0] = stage
    shards = strategy.etp / strategy.tp
    ranks = expected_domains(moe, strategy.ep)
    copies = {"flat": float(moe.top_k), "dedup": ranks, "hierarchical": ranks}[method]
    rows: list[float] = []
    inside_before = 1.0 / stage
    for tier, size in enumerate(per_domain):
        inside = size / stage
        if tier == 0 or method != "hierarchical":
            crossing = copies * shards * (inside - inside_before)
            if tier == 0 and method == "hierarchical":
                # every copy is delivered inside its domain, from the GPU where it arrived
                crossing = copies * shards * (1 - 1 / size)
        else:
            domains = stage // per_domain[tier - 1]
            outer = stage // size
            reached = expected_domains(moe, domains)
            # leaves its domain of tier t - 1, but stays inside its domain of tier t
            stays = (size / per_domain[tier - 1] - 1) / max(domains - 1, 1) if outer > 1 else 1.0
            crossing = reached * (1 - 1 / domains) / strategy.tp * (stays if domains > 1 else 0.0)
        rows.append(max(crossing, 0.0))
        inside_before = inside
    return tuple(rows)
