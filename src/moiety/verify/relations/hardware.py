"""Claims about the cluster: counts, memory, rates, links."""

from __future__ import annotations

from typing import TYPE_CHECKING

from moiety.verify.observation import Observation, Outcome

if TYPE_CHECKING:
    from collections.abc import Iterator

    from moiety.verify.case import AuditCase
    from moiety.verify.claims import Claim


def described_by_cluster(case: AuditCase) -> Iterator[Observation]:
    """Compare counts, memory and peak rate with the cluster's."""
    cluster, device = case.plan.cluster, case.plan.cluster.device
    peak = device.peak(case.plan.options.dtypes.activations)
    for quantity, what, actual in (
        ("num_gpus", "GPUs of the cluster", cluster.num_gpus),
        ("num_nodes", "nodes of the cluster", cluster.num_nodes),
        ("gpus_per_node", "GPUs of a node", cluster.gpus_per_node),
        ("gpu_memory", "memory of the device in bytes", device.memory_bytes),
        ("gpu_peak_flops", "peak of the device in FLOP/s", peak),
    ):
        for claim in case.claimed(quantity):
            agrees = claim.interval.near(actual, 1e-6)
            yield Observation(
                rule="described-by-cluster",
                outcome="confirms" if agrees else "contradicts",
                claims=(claim.id,),
                arithmetic=f"claimed {claim.shown}; {what}: {actual:,.6g}",
                consistent={claim.id: claim.in_unit(actual)},
            )


def link_bandwidth(case: AuditCase) -> Iterator[Observation]:
    """Find in which unit (of a GPU or a node, one way or both ways) a link's claimed bandwidth is the cluster's."""
    cluster = case.plan.cluster
    for claim in case.claimed("link_bandwidth"):
        index = next(
            (i for i, tier in enumerate(cluster.tiers) if tier.name.lower() == (claim.tier or "").lower()), None
        )
        if index is None:
            known = ", ".join(tier.name for tier in cluster.tiers)
            yield _cannot(claim, f"the cluster has no tier {claim.tier!r}; its tiers are {known}")
            continue
        readings = _readings(case, index)
        fitting = [name for name, rate in readings.items() if claim.interval.near(rate, 1e-6)]
        shown = "; ".join(f"{name} {rate / 1e9:,.4g} GB/s" for name, rate in readings.items())
        yield Observation(
            rule="link-bandwidth",
            outcome="confirms" if fitting else "contradicts",
            claims=(claim.id,),
            arithmetic=f"claimed {claim.shown}; {claim.tier}: {shown}"
            + (f"; so it is counted {fitting[0]}" if fitting else "; it is none of them"),
            consistent={claim.id: claim.in_unit(readings["one way per GPU"])},
        )


def effective_bandwidth(case: AuditCase) -> Iterator[Observation]:
    """Compare a bandwidth that is said to be reached with what the links have."""
    cluster = case.plan.cluster
    for claim in case.claimed("effective_bandwidth"):
        tiers = [i for i, tier in enumerate(cluster.tiers) if claim.tier in {None, tier.name}]
        lines: list[str] = []
        possible: list[bool] = []
        for index in tiers:
            per_gpu, per_node = (
                cluster.bandwidth_per_gpu(index),
                cluster.bandwidth_per_gpu(index) * cluster.gpus_per_node,
            )
            possible += [claim.interval.low <= per_gpu, claim.interval.low <= per_node]
            lines.append(
                f"{cluster.tiers[index].name} has {per_gpu / 1e9:,.4g} GB/s each way per GPU "
                f"({claim.number / per_gpu:.0%}) and {per_node / 1e9:,.4g} GB/s per node "
                f"({claim.number / per_node:.0%})"
            )
        outcome: Outcome = "supports" if all(possible) else "cannot judge" if any(possible) else "contradicts"
        said = "" if claim.tier else "it is not said between which ends; "
        yield Observation(
            rule="effective-bandwidth",
            outcome=outcome,
            claims=(claim.id,),
            arithmetic=f"claimed {claim.shown}: {said}{'; '.join(lines)}",
        )


def _readings(case: AuditCase, index: int) -> dict[str, float]:
    cluster, tier = case.plan.cluster, case.plan.cluster.tiers[index]
    per_gpu = tier.bandwidth_bytes_per_s / (cluster.gpus_per_node if tier.per == "node" else 1)
    return {
        "one way per GPU": per_gpu,
        "both ways together per GPU": 2 * per_gpu,
        "one way per node": per_gpu * cluster.gpus_per_node,
        "both ways together per node": 2 * per_gpu * cluster.gpus_per_node,
    }


def _cannot(claim: Claim, reason: str) -> Observation:
    return Observation(rule="link-bandwidth", outcome="cannot judge", claims=(claim.id,), arithmetic=reason)
