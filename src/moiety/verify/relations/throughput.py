"""Claims about throughput: gains and changes against the figures they compare, and against simulated plans."""

from __future__ import annotations

from typing import TYPE_CHECKING

from moiety.plan import Plan
from moiety.strategy.strategy import Strategy
from moiety.verify.case import PROJECTION_ERROR
from moiety.verify.claims import VARIANTS
from moiety.verify.closed_form import highest_peak
from moiety.verify.observation import Observation

if TYPE_CHECKING:
    from collections.abc import Iterator

    from moiety.verify.case import AuditCase
    from moiety.verify.claims import Claim

WEAK_MICROBATCHES = 8
WEAK_MICROBATCH_TOKENS = 2048

_RATIOS = (
    # claimed ratio, of what, greater is better, minus one
    ("throughput_gain", "throughput", False, False),
    ("latency_gain", "latency_per_token", True, False),
    ("throughput_change", "throughput", False, True),
    ("latency_change", "latency_per_token", False, True),
    ("utilization_change", "gpu_utilization", False, True),
    ("all_reduce_latency_change", "all_reduce_latency", False, True),
)


def ratios(case: AuditCase) -> Iterator[Observation]:
    """Compare each gain or change with the two figures it compares."""
    for quantity, of_what, inverted, is_change in _RATIOS:
        for claim in case.claimed(quantity):
            firsts, seconds = case.claimed(of_what, claim.of), case.claimed(of_what, claim.over)
            if not firsts or not seconds:
                missing = claim.of if not firsts else claim.over
                yield Observation(
                    rule="ratios",
                    outcome="cannot judge",
                    claims=(claim.id,),
                    arithmetic=f"{claim.shown}: the claims do not state the {of_what.replace('_', ' ')} of {missing}",
                )
                continue
            # a figure that cannot be of this kind (all GPUs in use) must not spoil the pair
            first = min(firsts, key=lambda each: each.number)
            second = min(seconds, key=lambda each: each.number)
            if second.interval.low <= 0 or first.interval.low <= 0:
                continue
            above, below = (second, first) if inverted else (first, second)
            value = above.interval / below.interval + (-1.0 if is_change else 0.0)
            agrees = value.overlaps(claim.interval)
            shown = f"{value.value:+.2%}" if is_change else f"{value.value:.3f}x"
            formula = f"{above.value:,g} / {below.value:,g}" + (" - 1" if is_change else "")
            yield Observation(
                rule="ratios",
                outcome="supports" if agrees else "conflicts",
                claims=(claim.id,) if agrees else (claim.id, first.id, second.id),
                arithmetic=f"{formula} = {shown}; claimed {claim.shown}",
                consistent={claim.id: claim.in_unit(value.value)},
            )


def simulated_throughput(case: AuditCase) -> Iterator[Observation]:
    """Compare the throughput of the claimed strategy's variants with the simulated one."""
    for variant in VARIANTS:
        projection = case.projection(variant)
        if projection is None or variant == "baseline":
            continue
        for claim in case.claimed("throughput", variant):
            actual = projection.throughput_tokens_per_s
            agrees = claim.interval.near(actual, PROJECTION_ERROR)
            yield Observation(
                rule="simulated-throughput",
                outcome="supports" if agrees else "contradicts",
                claims=(claim.id,),
                arithmetic=f"claimed {claim.shown}; simulated {actual:,.0f} tokens/s ({variant} options, "
                f"{case.pool.strategy.name}), {claim.number / actual:.2f} times; within {PROJECTION_ERROR:.0%}: "
                f"{'yes' if agrees else 'no'}",
                consistent={claim.id: claim.in_unit(actual)},
            )


def impossible_throughput(case: AuditCase) -> Iterator[Observation]:
    """Find throughputs that need more than the peak of all GPUs."""
    plan = case.plan
    limit = highest_peak(plan) * plan.num_gpus / case.flops_per_counted_token()
    for claim in case.claimed("throughput"):
        if claim.interval.low > limit:
            yield Observation(
                rule="impossible-throughput",
                outcome="contradicts",
                claims=(claim.id,),
                arithmetic=f"claimed {claim.shown}; the peak of {plan.num_gpus} GPUs over the FLOPs of a token is "
                f"{limit:,.0f} tokens/s",
                consistent={claim.id: claim.in_unit(limit)},
            )


def baselines(case: AuditCase) -> Iterator[Observation]:
    """Place a claimed baseline between simulated ones, from the weakest to the strongest."""
    claims = case.claimed("throughput", "baseline")
    if not claims:
        return
    known = _simulated_baselines(case)
    fitting = {name: plan for name, plan in known.items() if isinstance(plan, Plan)}
    rates = {name: plan.projection.throughput_tokens_per_s for name, plan in fitting.items() if plan.projection}
    if not rates:
        return
    shown = "; ".join(
        f"{name}: {rates[name]:,.0f} tokens/s" if name in rates else f"{name}: {plan}" for name, plan in known.items()
    )
    low, high = min(rates.values()), max(rates.values())
    for claim in claims:
        agrees = claim.interval.high >= low * (1 - PROJECTION_ERROR) and claim.interval.low <= high * (
            1 + PROJECTION_ERROR
        )
        yield Observation(
            rule="baselines",
            outcome="supports" if agrees else "contradicts",
            claims=(claim.id,),
            arithmetic=f"claimed {claim.shown}; simulated {shown}",
        )
        if agrees and claim.interval.high < high * (1 - PROJECTION_ERROR):
            yield from _weak_baseline(case, claim, rates, high)


def _weak_baseline(case: AuditCase, claim: Claim, rates: dict[str, float], high: float) -> Iterator[Observation]:
    """Say what the claimed gains over a weak baseline are over the strongest one."""
    strongest = max(rates, key=lambda name: rates[name])
    for gain in case.claimed("throughput_gain", None, "baseline"):
        for fast in case.claimed("throughput", gain.of):
            yield Observation(
                rule="baselines",
                outcome="doubts",
                claims=(gain.id, claim.id),
                arithmetic=f"{gain.shown} is over a baseline of {claim.shown}; over {strongest} "
                f"({high:,.0f} tokens/s simulated) the claimed {fast.shown} is {fast.number / high:.2f}x",
                consistent={gain.id: gain.in_unit(fast.number / high)},
            )


def _simulated_baselines(case: AuditCase) -> dict[str, Plan | str]:
    """Return plans without optimisations: TP over a node with PP over nodes or replicas, and the claimed strategy."""
    plan = case.plan
    cluster, options = plan.cluster, case.plans.get("baseline", plan).options
    node, nodes = cluster.gpus_per_node, cluster.num_nodes
    found: dict[str, Plan | str] = {}
    piped = Strategy(tp=node, etp=node, pp=nodes)
    if plan.workload.kind in {"prefill", "training"}:
        tokens = (WEAK_MICROBATCHES, min(WEAK_MICROBATCH_TOKENS, plan.workload.input_tokens))
        found[f"{piped.name}, {tokens[0]} micro-batches of {tokens[1]:,} tokens"] = case.project(
            piped, options, tokens=tokens
        )
    found[f"{piped.name}, large batches"] = case.project(piped, options)
    for stages in (each for each in (1, 2, 4, 8) if nodes % each == 0 and each < max(nodes, 2)):
        replicas = Strategy(tp=node, etp=node, pp=stages, instances=nodes // stages)
        found[f"{replicas.name}, large batches"] = case.project(replicas, options)
        if isinstance(found[f"{replicas.name}, large batches"], Plan):
            break
    if "baseline" in case.plans:
        found[f"{case.pool.strategy.name} with every option off"] = case.plans["baseline"]
    return found
