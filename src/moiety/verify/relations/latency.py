"""Claims about latency: reciprocals that are taken for latencies, and parts that are longer than the whole."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from moiety.cost.collective import collective_transfer
from moiety.dtypes import BYTES_PER_ELEMENT
from moiety.verify.case import PROJECTION_ERROR
from moiety.verify.claims import VARIANTS
from moiety.verify.observation import Observation

if TYPE_CHECKING:
    from collections.abc import Iterator

    from moiety.verify.case import AuditCase
    from moiety.verify.claims import Claim


def reciprocal_of_throughput(case: AuditCase) -> Iterator[Observation]:
    """Compare latency x throughput with the tokens in flight (Little's law); a power of 1,000 is no load."""
    in_flight = _tokens_in_flight(case)
    for variant in VARIANTS:
        for rate in case.claimed("throughput", variant):
            for claim in case.claimed("latency_per_token", variant):
                if rate.interval.low <= 0 or claim.interval.low <= 0:
                    continue
                period = 1 / rate.number
                product = claim.interval * rate.interval
                power = round(math.log(product.value, 1000))
                is_reciprocal = product.low <= 1000.0**power <= product.high
                text = (
                    f"1 / {rate.shown} = {period * 1e6:.3f} us between tokens of the whole cluster; "
                    f"claimed {claim.shown}"
                )
                if is_reciprocal and power == 0:
                    yield _found(
                        claim, rate, "supports", f"{text}: the reciprocal of the throughput, not what a user waits"
                    )
                elif is_reciprocal:
                    per = f"{1000**power:,} tokens" if power > 0 else f"1/{1000**-power:,} token"
                    text += (
                        f": the same digits, so it is the time per {per}, the reciprocal of the throughput, "
                        "and not a latency "
                        f"that a user sees; {_user_latency(case)}"
                    )
                    yield _found(claim, rate, "contradicts", text)
                else:
                    agrees = in_flight is None or product.near(in_flight, PROJECTION_ERROR)
                    text += f": as a latency it means {product.value:,.0f} tokens in flight (latency x throughput)"
                    text += "" if in_flight is None else f", the workload has {in_flight:,.0f}"
                    yield _found(claim, rate, "supports" if agrees else "conflicts", text)


def all_reduce(case: AuditCase) -> Iterator[Observation]:
    """Compare an all-reduce per layer with the latency per token, and with the batch that it implies."""
    plan, strategy = case.plan, case.pool.strategy
    layers = plan.model.num_layers
    for variant in VARIANTS:
        for claim in case.claimed("all_reduce_latency", variant):
            for whole in case.claimed("latency_per_token", variant):
                total = claim.number * layers
                fits = claim.interval.low * layers <= whole.interval.high
                yield Observation(
                    rule="all-reduce-within-latency",
                    outcome="supports" if fits else "conflicts",
                    claims=(claim.id, whole.id),
                    arithmetic=f"{claim.shown} per layer x {layers} layers = {total * 1e3:,.4g} ms of "
                    "all-reduce alone; claimed "
                    f"latency per token {whole.shown}"
                    + (", less than one layer's all-reduce" if claim.number > whole.number else ""),
                    consistent={claim.id: claim.in_unit(whole.number / layers)},
                )
            if strategy.tp > 1 and claim.interval.low > 0:
                yield _implied_batch(case, claim)


def _implied_batch(case: AuditCase, claim: Claim) -> Observation:
    """Return what batch an all-reduce of that length implies on the links, beside the plan's own."""
    plan, pool = case.plan, case.pool
    tp, hidden = pool.strategy.tp, plan.model.hidden_size
    tier = plan.cluster.tier_of_group(tuple(range(tp)))
    rate = plan.cluster.bandwidth_per_gpu(tier)
    element = BYTES_PER_ELEMENT[plan.options.dtypes.activations]
    elements = claim.number * rate * tp / (2 * (tp - 1)) / element
    micro, batch = pool.schedule.tokens_per_microbatch, pool.schedule.tokens_per_step
    priced = [
        collective_transfer(
            "all_reduce", tokens * hidden * element, tuple(range(tp)), plan.cluster, case.calibration
        ).seconds
        for tokens in (micro, batch)
    ]
    # one all-reduce of a micro-batch, both of a layer, both of all micro-batches: a claim may mean any of them
    bounds = (priced[0] * (1 - PROJECTION_ERROR), 2 * priced[1] * (1 + PROJECTION_ERROR))
    agrees = claim.interval.high >= bounds[0] and claim.interval.low <= bounds[1]
    return Observation(
        rule="all-reduce-implies-batch",
        outcome="supports" if agrees else "contradicts",
        claims=(claim.id,),
        arithmetic=f"{claim.shown} at {rate / 1e9:g} GB/s each way moves {elements / 1e6:,.0f} M elements of "
        f"a ring of {tp}, "
        f"{elements / hidden:,.0f} tokens of {hidden:,} (half of that if it is for both all-reduces of a "
        "layer); the plan has "
        f"{micro:,} tokens in a micro-batch and {batch:,} in a step, whose all-reduce is simulated at "
        f"{priced[0] * 1e3:.2f} and {priced[1] * 1e3:.2f} ms",
        consistent={claim.id: claim.in_unit(priced[0])},
    )


def _tokens_in_flight(case: AuditCase) -> float | None:
    workload = case.plan.workload
    if workload.kind in {"prefill", "training"}:
        return float(workload.tokens_per_batch)
    return float(workload.concurrency) if workload.concurrency else None


def _user_latency(case: AuditCase) -> str:
    projection = case.plan.projection
    if projection is None:
        return ""
    parts = [f"the simulated step takes {projection.step_s:,.3g} s"]
    if projection.ttft_s is not None:
        parts.append(f"the first token comes after {projection.ttft_s:,.3g} s")
    if projection.tpot_s is not None:
        parts.append(f"each further one after {projection.tpot_s * 1e3:,.3g} ms")
    return ", ".join(parts)


def _found(claim: Claim, rate: Claim, outcome: str, text: str) -> Observation:
    involved = (claim.id, rate.id) if outcome == "conflicts" else (claim.id,)
    return Observation.model_validate(
        {
            "rule": "reciprocal-of-throughput",
            "outcome": outcome,
            "claims": involved,
            "arithmetic": text,
            "consistent": {claim.id: claim.in_unit(1 / rate.number)},
        }
    )
