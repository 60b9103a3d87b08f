"""Claims about communication: what is hidden, and what crosses nodes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from moiety.placement.load import mean_balance
from moiety.verify.claims import VARIANTS
from moiety.verify.closed_form import distinct_shares
from moiety.verify.observation import Observation

if TYPE_CHECKING:
    from collections.abc import Iterator

    from moiety.verify.case import AuditCase
    from moiety.verify.claims import Claim

_SHARE_TOLERANCE = 0.05
"""How far a simulated share may be from a claimed one, absolutely."""
_TRAFFIC_TOLERANCE = 0.02


def hidden_communication(case: AuditCase) -> Iterator[Observation]:
    """Compare the hidden share of the communication, and the exposed share of the step, with the simulated timeline."""
    for variant in VARIANTS:
        projection = case.projection(variant)
        if projection is None:
            continue
        for quantity, what, actual in (
            ("communication_overlap", "of the communication time runs behind computation", projection.overlap_fraction),
            (
                "exposed_communication",
                "of the step communicates and computes nothing",
                projection.exposed_communication_fraction,
            ),
        ):
            for claim in case.claimed(quantity, variant):
                yield Observation(
                    rule="hidden-communication",
                    outcome="supports" if _within(claim, actual) else "contradicts",
                    claims=(claim.id,),
                    arithmetic=f"claimed {claim.shown}; simulated: {actual:.1%} {what} "
                    f"({variant} options, {case.pool.strategy.name})",
                    consistent={claim.id: claim.in_unit(actual)},
                )


def cross_node_traffic(case: AuditCase) -> Iterator[Observation]:
    """Compare a reduction of the traffic between nodes with what each means can bring.

    What placement brings is measured where the plan holds a trace's traffic; routing is uniform otherwise.
    """
    plan, strategy, moe = case.plan, case.pool.strategy, case.plan.model.moe
    node = plan.cluster.gpus_per_node
    stage_nodes = strategy.gpus_per_stage // node
    claims = case.claimed("cross_node_traffic_reduction")
    if not claims:
        return
    if moe is None or stage_nodes < 2 or moe.num_experts % stage_nodes or strategy.attn_dp == 1:  # noqa: PLR2004 - two nodes
        for claim in claims:
            reason = f"{strategy.name} sends no tokens to experts on other nodes, or not equal shares of them"
            yield Observation(rule="cross-node-traffic", outcome="cannot judge", claims=(claim.id,), arithmetic=reason)
        return
    reached = distinct_shares(moe.num_experts, moe.top_k, stage_nodes)
    dedup = 1 - reached / moe.top_k
    partners = 1 - 1 / strategy.etp
    both = 1 - (1 - dedup) * (1 - partners)
    per_node = moe.num_experts // stage_nodes
    sums = (
        f"flat dispatch sends {moe.top_k} rows per token, one copy per node {reached:.3f} (top-{moe.top_k} on "
        f"{stage_nodes} "
        f"nodes of {per_node} experts, uniform routing): {dedup:.1%} less"
    )
    if partners:
        sums += (
            f"; not sending every row to all {strategy.etp} tensor-parallel partners of an expert: "
            f"{partners:.0%} less; "
            f"both: {both:.1%} less"
        )
    for claim in claims:
        if claim.by == "placement" and (measured_cut := _measured_reduction(case, claim)) is not None:
            yield measured_cut
            continue
        ways = {"placement": [0.0, dedup], "all_to_all": [dedup, partners, both], "everything": [dedup, partners, both]}
        possible = ways.get(claim.by or "everything", [])
        agrees = any(claim.interval.near(each, _TRAFFIC_TOLERANCE) for each in possible)
        text = f"claimed {claim.shown} by {(claim.by or 'everything').replace('_', ' ')}; {sums}"
        if claim.by == "placement":
            text += (
                "; where an expert lies changes nothing when all experts are alike: with one copy per expert "
                "it takes experts "
                "that are chosen together in the routing, replicas, or routing limited to few nodes"
            )
        measured = plan.expert_shares is not None and claim.by == "placement" and not agrees
        if measured:
            text += "; the plan has measured loads, but not which experts are chosen together on the GPUs of "
            text += f"{strategy.name} with one copy of each: plan it with a trace, --strategy and no redundant experts"
        yield Observation(
            rule="cross-node-traffic",
            outcome="supports" if agrees else "cannot judge" if measured else "contradicts",
            claims=(claim.id,),
            arithmetic=text,
            consistent={claim.id: claim.in_unit(dedup if claim.by == "placement" else both)},
        )


def _measured_reduction(case: AuditCase, claim: Claim) -> Observation | None:
    """Compare a claim with what the plan's placement saves of other methods' traffic on a trace, None without one."""
    placement, others, shares = case.pool.placement, case.pool.measured, case.plan.expert_shares
    if placement is None or placement.traffic is None or not placement.traffic.domains or not others or shares is None:
        return None
    ours = placement.traffic.remote_domains
    saved: dict[str, float] = {}
    said: list[str] = []
    for other in others:
        theirs = other.traffic.remote_domains
        saved[other.method] = 1 - ours / theirs if theirs else 0.0
        less = f"{saved[other.method]:.1%} less than {other.method}"
        said.append(f"{less} ({theirs:.3f} at balance {other.balance:.3f})")
    copies = placement.num_slots - placement.num_logical_experts
    agrees = any(claim.interval.near(each, _TRAFFIC_TOLERANCE) for each in saved.values())
    return Observation(
        rule="cross-node-traffic",
        outcome="supports" if agrees else "contradicts",
        claims=(claim.id,),
        arithmetic=f"claimed {claim.shown} by placement; measured on {placement.traffic.num_tokens:,} tokens, one row "
        f"per node and near copies first in each: {placement.method} reaches {ours:.3f} other nodes a token with "
        f"{copies} copies of experts at balance {mean_balance(placement, shares):.3f}, {', '.join(said)}",
        consistent={claim.id: claim.in_unit(max(saved.values()))},
    )


def _within(claim: Claim, actual: float) -> bool:
    if claim.bound == "at_most":
        return actual <= claim.interval.high + _SHARE_TOLERANCE / 10
    if claim.bound == "at_least":
        return actual >= claim.interval.low - _SHARE_TOLERANCE / 10
    return claim.interval.low - _SHARE_TOLERANCE <= actual <= claim.interval.high + _SHARE_TOLERANCE
