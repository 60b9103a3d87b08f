"""Rows that dispatch sends over each tier of links: measured on a trace, or exact for uniform routing."""

from __future__ import annotations

import math
from functools import lru_cache
from itertools import pairwise
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from moiety.cluster.cluster import Cluster
    from moiety.graph.op import ExchangeMethod
    from moiety.model.feed_forward import MoeFeedForward
    from moiety.placement.serving.routed_traffic import RoutedTraffic
    from moiety.plan import AllToAll
    from moiety.strategy.strategy import Strategy


def missed_probability(pool: int, part: int, draws: int) -> float:
    """Return the chance that `draws` distinct picks out of `pool` miss a given `part`: C(pool-part, d) / C(pool, d)."""
    if draws > pool - part:
        return 0.0
    return math.exp(sum(math.log1p(-part / (pool - index)) for index in range(draws)))


def expected_domains(moe: MoeFeedForward, domains: int) -> float:
    """Return how many of `domains` consecutive shares of the experts, as even as possible, a token's top-k reaches.

    Uniform routing, averaged: N (1 - C(E - E/N, k) / C(E, k)). Under group-limited routing the top-k come from
    `top_k_groups` of `num_groups` groups, and the count is averaged over the choice of groups.
    """
    return _expected_domains(moe.num_experts, moe.top_k, moe.num_groups, moe.top_k_groups, domains)


@lru_cache(maxsize=65536)
def _expected_domains(experts: int, top_k: int, groups: int, chosen: int, domains: int) -> float:
    if chosen == groups:
        groups = chosen = 1
    per_group = experts // groups
    shares: dict[tuple[int, ...], int] = {}
    for low, high in pairwise(index * experts // domains for index in range(domains + 1)):
        # experts of the share in every group that it touches
        first, last = low // per_group, (high - 1) // per_group
        overlaps = (min(high, (g + 1) * per_group) - max(low, g * per_group) for g in range(first, last + 1))
        key = tuple(sorted(overlaps))
        shares[key] = shares.get(key, 0) + 1
    return sum(count * _reach_probability(key, groups, chosen, per_group, top_k) for key, count in shares.items())


def _reach_probability(overlaps: tuple[int, ...], groups: int, chosen: int, per_group: int, top_k: int) -> float:
    """Return the chance that a token picks one of a share's experts, which has `overlaps` of them in as many groups."""
    reached = 0.0
    for hits, held, ways in _hits(overlaps, per_group):
        if hits > chosen or chosen - hits > groups - len(overlaps):
            continue
        chance = ways * math.comb(groups - len(overlaps), chosen - hits) / math.comb(groups, chosen)
        reached += chance * (1 - missed_probability(chosen * per_group, held, top_k))
    return reached


def _hits(overlaps: tuple[int, ...], per_group: int) -> Iterator[tuple[int, int, int]]:
    """Yield (chosen groups of a share, its experts in them, ways to choose them); at most two are held in part."""
    whole = sum(each == per_group for each in overlaps)
    partly = [each for each in overlaps if each < per_group]
    for number in range(whole + 1):
        for mask in range(2 ** len(partly)):
            taken = [each for bit, each in enumerate(partly) if mask >> bit & 1]
            yield number + len(taken), number * per_group + sum(taken), math.comb(whole, number)


def rows_per_token(
    moe: MoeFeedForward,
    strategy: Strategy,
    cluster: Cluster,
    method: ExchangeMethod,
    first_rank: int = 0,
    traffic: RoutedTraffic | None = None,
) -> tuple[float, ...]:
    """Return the rows that each GPU sends on each tier per token of its attention group, one way.

    A row crosses tier t when it leaves a domain of tier t - 1. `flat` sends one row per token and expert, `dedup`
    one per token and expert-parallel rank, `hierarchical` one per token and domain, passed on inside it. The first two
    send a row to each of the `etp` GPUs that share an expert; the third sends one and copies it behind the last slow
    link; `gathered` sends one per token and expert to one of those GPUs, which all gather what the others got. The
    tokens of an attention group are divided over its `tp` GPUs.

    With `traffic` the ranks and domains that a token reaches are those measured on a trace under the placement; without
    it, or where it was measured on other domains than the stage lies in, routing is taken for uniform (for `gathered`
    always).
    """
    stage = strategy.gpus_per_stage
    widths = (1, *stage_widths(strategy, cluster, first_rank))
    if method == "gathered":
        sent = moe.top_k / strategy.tp
        apart = pairwise((strategy.etp, *(max(width, strategy.etp) for width in widths[1:])))
        first, *wider = (sent * (outer - inner) / stage for inner, outer in apart)
        return (first + sent * (strategy.etp - 1), *wider)
    if traffic is not None and is_measured(traffic, strategy, cluster, first_rank):
        return _measured_rows(traffic, strategy, method, widths)
    experts_apart = expected_domains(moe, strategy.ep)
    if method != "hierarchical":
        copies = (moe.top_k if method == "flat" else experts_apart) * strategy.etp / strategy.tp
        return tuple(copies * (outer - inner) / stage for inner, outer in pairwise(widths))
    rows: list[float] = []
    for inner, outer in pairwise(widths):
        # every copy is sent from where it arrived in the wider domain; one of the narrower ones has it already
        domains = stage // inner
        spread = max(domains / strategy.ep, 1.0)  # domains that the GPUs of one expert lie in
        copies = expected_domains(moe, min(domains, strategy.ep)) * spread / strategy.tp
        rows.append(copies * (1 - inner / outer))
    return tuple(rows)


def is_measured(traffic: RoutedTraffic, strategy: Strategy, cluster: Cluster, first_rank: int = 0) -> bool:
    """Return whether traffic was measured on the domains of links that the stages of a strategy lie in."""
    stage = strategy.gpus_per_stage
    widths = stage_widths(strategy, cluster, first_rank)
    return all(width == stage or traffic.outside(width) is not None for width in widths)


def _measured_rows(
    traffic: RoutedTraffic, strategy: Strategy, method: AllToAll, widths: tuple[int, ...]
) -> tuple[float, ...]:
    """Return the rows per tier from what the tokens of a trace reach outside the domains of each width.

    Which GPU of its innermost domain a token starts from is drawn uniformly; so is where its row arrives in another.
    """
    total = traffic.top_k if method == "flat" else traffic.reached_ranks
    rows: list[float] = []
    for tier, (inner, outer) in enumerate(pairwise(widths)):
        far, near = traffic.outside(outer), traffic.outside(inner)
        if method != "hierarchical":
            leaving = 0.0 if far is None else (far.messages if method == "flat" else far.ranks)
            if tier == 0:
                sent = (total - leaving) * (1 - 1 / outer)
            else:
                sent = 0.0 if near is None else (near.messages if method == "flat" else near.ranks) - leaving
            sent *= strategy.etp
        elif tier == 0:
            sent = total * strategy.etp * (1 - 1 / outer)
        else:
            # in the home's wider domain every narrower one needs a row; in others one of them has it already
            sent = 0.0 if near is None else near.domains - (far.narrower * inner / outer if far else 0.0)
        rows.append(max(sent, 0.0) / strategy.tp if outer > inner else 0.0)
    return tuple(rows)


def stage_widths(strategy: Strategy, cluster: Cluster, first_rank: int = 0) -> tuple[int, ...]:
    """Return how many consecutive GPUs of a stage share a domain of each tier, in the stage that is cut up most."""
    return tuple(_stage_share(strategy, tier.num_gpus, first_rank) for tier in cluster.tiers)


def _stage_share(strategy: Strategy, span: int, first_rank: int) -> int:
    stage = strategy.gpus_per_stage
    if first_rank // span == (first_rank + strategy.num_gpus - 1) // span:
        return stage
    return math.gcd(span, stage, first_rank)
