"""Measured traffic: what a plan says of a trace agrees with its map and its shares, and the trace stands behind it."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from moiety.cost.expert_traffic import is_measured
from moiety.verify.findings import Finding, judged

if TYPE_CHECKING:
    from collections.abc import Iterator

    from moiety.placement.placement import Placement
    from moiety.plan import Plan, Pool
    from moiety.verify.inspection import Inspection

_SAMPLED = 0.02
"""How far a figure of a sample of the trace may be from that of the whole, relatively."""
_SAMPLED_LOAD = 0.1
"""Likewise for the work of one expert rank relative to the mean, which fewer tokens decide."""
_ROUNDED = 1e-3


def routed_traffic(inspection: Inspection) -> Iterator[Finding]:
    """Check the measured traffic against the map and the shares; say where uniform routing is taken instead."""
    plan = inspection.plan
    for pool in plan.pools:
        placement, subject = pool.placement, inspection.name_of(pool)
        if placement is None or plan.expert_shares is None or pool.strategy.ep == 1:
            continue
        traffic = placement.traffic
        if traffic is None or not is_measured(traffic, pool.strategy, plan.cluster, pool.first_rank):
            message = (
                "loads are measured; which experts a token takes together is not known on these GPUs, so that the "
            )
            message += "traffic is that of uniform routing"
            yield judged("routed-traffic", subject, message, holds=False, otherwise="warning")
            continue
        yield _flat_rows(plan, pool, placement)
        yield from _served_loads(plan, placement, subject)


def _flat_rows(plan: Plan, pool: Pool, placement: Placement) -> Finding:
    """Compare the messages of a flat dispatch with k x the share of the work that has no copy at home."""
    traffic = placement.traffic
    assert traffic is not None, "the caller has looked"
    subject = f"{pool.strategy.name}, messages between domains"
    top_k = plan.model.moe.top_k if plan.model.moe is not None else 0
    if not traffic.domains:
        inside = traffic.top_k == top_k and traffic.reached_ranks <= min(top_k, pool.strategy.ep) + _ROUNDED
        message = f"{traffic.reached_ranks:.3f} ranks a token, all in one domain of links"
        return judged("routed-traffic", subject, message, holds=inside)
    width = traffic.domains[0].num_gpus // placement.expert_tp * placement.slots_per_rank
    away: list[float] = []
    for row, slots in enumerate(placement.physical_to_logical_map):
        shares = plan.expert_shares[row] if plan.expert_shares is not None else ()
        homes = [set(slots[first : first + width]) for first in range(0, len(slots), width)]
        away.append(1 - sum(sum(shares[expert] for expert in held) for held in homes) / len(homes))
    expected, actual = top_k * sum(away) / len(away), traffic.domains[0].messages
    return judged(
        "routed-traffic",
        subject,
        f"{actual:.4f} of {top_k} experts of a token are served outside its home; by the map and the measured shares "
        f"{expected:.4f} have no copy there",
        holds=abs(actual - expected) <= _SAMPLED * top_k and traffic.top_k == top_k,
        expected=expected,
        actual=actual,
    )


def _served_loads(plan: Plan, placement: Placement, subject: str) -> Iterator[Finding]:
    """Check that each rank serves all work that only it can, and no more than there is for its experts."""
    traffic, ranks = placement.traffic, placement.num_expert_ranks
    assert traffic is not None, "the caller has looked"
    if not traffic.rank_loads:
        lost = placement.has_copies
        message = "experts have copies, but what each rank serves is missing" if lost else "one copy of every expert"
        yield judged("served-loads", subject, message, holds=not lost)
        return
    wrong = 0
    for row, (slots, loads) in enumerate(zip(placement.physical_to_logical_map, traffic.rank_loads, strict=True)):
        shares = plan.expert_shares[row] if plan.expert_shares is not None else ()
        copies = Counter(slots)
        wrong += abs(sum(loads) / ranks - 1) > _ROUNDED
        for rank, load in enumerate(loads):
            held = Counter(placement.experts_of_rank(row, rank))
            most = ranks * sum(shares[expert] for expert in held)
            least = ranks * sum(shares[expert] for expert, number in held.items() if number == copies[expert])
            wrong += not least - _SAMPLED_LOAD <= load <= most + _SAMPLED_LOAD
    yield judged(
        "served-loads",
        subject,
        f"{ranks} ranks in {len(traffic.rank_loads)} layers serve what they hold; {wrong} more or less than they can",
        holds=wrong == 0,
        expected=0.0,
        actual=float(wrong),
    )
