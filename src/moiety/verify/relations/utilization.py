"""Claims about how much of the GPUs' peak is used: work per token, units, and what others have reached."""

from __future__ import annotations

import math
from itertools import combinations
from typing import TYPE_CHECKING

from moiety.verify.case import PROJECTION_ERROR
from moiety.verify.claims import VARIANTS
from moiety.verify.closed_form import highest_peak
from moiety.verify.observation import Observation
from moiety.verify.published import published_for

if TYPE_CHECKING:
    from collections.abc import Iterator

    from moiety.verify.case import AuditCase
    from moiety.verify.claims import Claim, VariantName
    from moiety.verify.interval import Interval

_WORK_TOLERANCE = 0.05
"""How far an implied work per token may be from the model's: what it changes to count embedding, norms and softmax."""
_SAME_DIGITS = 0.005


def is_full_share(case: AuditCase, claim: Claim) -> bool:
    """Return whether a claimed utilisation is the share of GPUs that the plan uses, and higher than any rate."""
    occupancy = case.plan.num_gpus / case.plan.cluster.num_gpus
    return claim.interval.near(occupancy, 1e-9) and claim.interval.high >= 1


def rates(case: AuditCase, variant: VariantName) -> list[Claim]:
    """Return the claimed utilisations of a variant that can be rates, as opposed to GPUs in use."""
    return [each for each in case.claimed("gpu_utilization", variant) if not is_full_share(case, each)]


def work_per_token(case: AuditCase) -> Iterator[Observation]:
    """Compare the FLOPs per token that throughput and utilisation imply with the model's: 2N, or 6N in training."""
    peak, gpus = highest_peak(case.plan), case.plan.num_gpus
    needed = case.flops_per_counted_token()
    training = case.plan.workload.kind == "training"
    active = case.plan.model.num_active_parameters
    for variant in VARIANTS:
        for rate in case.claimed("throughput", variant):
            for used in rates(case, variant):
                implied = used.interval * (peak * gpus) / rate.interval
                agrees = implied.near(needed, _WORK_TOLERANCE)
                other = needed / 3 if training else needed * 3
                kind = "training (forward and backward)" if not training else "inference (forward only)"
                text = (
                    f"{used.shown} of {peak / 1e12:g} TFLOPS x {gpus} GPUs / {rate.shown} = "
                    f"{implied.value / 1e9:.2f} GFLOP "
                    f"per token: {implied.value / 2e9:.1f} B active parameters if inference (2N), "
                    f"{implied.value / 6e9:.1f} B if training (6N); the model has {active / 1e9:.1f} B "
                    "active, and with "
                    f"attention over the workload's context it needs {needed / 1e9:.2f} GFLOP per token"
                )
                if implied.near(other, _WORK_TOLERANCE) and not agrees:
                    text += f"; the figures fit {kind}, the workload is {case.plan.workload.kind}"
                yield Observation(
                    rule="work-per-token",
                    outcome="supports" if agrees else "conflicts",
                    claims=(rate.id, used.id),
                    arithmetic=text,
                    consistent={
                        used.id: used.in_unit(needed * rate.number / (peak * gpus)),
                        rate.id: rate.in_unit(used.number * peak * gpus / needed),
                    },
                )


def throughput_follows_utilization(case: AuditCase) -> Iterator[Observation]:
    """Compare how throughput and utilisation grow: on the same model and GPUs both have the same ratio."""
    for over, of in combinations(VARIANTS, 2):
        for fast, slow in _pairs(case.claimed("throughput", of), case.claimed("throughput", over)):
            for high, low in _pairs(rates(case, of), rates(case, over)):
                gained, risen = fast.interval / slow.interval, high.interval / low.interval
                agrees = gained.overlaps(risen)
                even = low.number * gained.value
                text = (
                    f"throughput rises {fast.value:,g} / {slow.value:,g} = {gained.value:.4f}x, "
                    f"utilisation {high.value:g} / {low.value:g} = {risen.value:.4f}x"
                )
                if not agrees:
                    text += (
                        ": not both for the same model and GPUs; consistent would be "
                        f"{high.in_unit(even):.1f} {high.unit} "
                        f"or {fast.in_unit(slow.number * risen.value):,.0f} {fast.unit}"
                    )
                yield Observation(
                    rule="throughput-follows-utilization",
                    outcome="supports" if agrees else "conflicts",
                    claims=(fast.id, high.id, slow.id, low.id),
                    arithmetic=text,
                    consistent={high.id: high.in_unit(even), fast.id: fast.in_unit(slow.number * risen.value)},
                )
        for gain in case.claimed("throughput_change", of, over):
            for rise in case.claimed("utilization_change", of, over):
                agrees = gain.interval.overlaps(rise.interval)
                yield Observation(
                    rule="throughput-follows-utilization",
                    outcome="supports" if agrees else "conflicts",
                    claims=(gain.id, rise.id),
                    arithmetic=f"throughput {gain.shown} and utilisation {rise.shown}: "
                    + ("the same" if agrees else "of the same model on the same GPUs both change by the same share"),
                    consistent={rise.id: rise.in_unit(gain.number)},
                )


def achieved_rate(case: AuditCase) -> Iterator[Observation]:
    """Check that achieved FLOPS must be utilisation x peak; a factor that is a power of 1,000 is a unit error."""
    peak = highest_peak(case.plan)
    for variant in VARIANTS:
        for rate in case.claimed("achieved_flops_per_gpu", variant):
            for used in rates(case, variant):
                expected = used.interval * peak
                agrees = rate.interval.overlaps(expected)
                text = (
                    f"{used.shown} of {peak / 1e12:g} TFLOPS = {expected.value / 1e12:.1f} TFLOPS per GPU; "
                    f"claimed {rate.shown}"
                )
                slip = 0 if agrees or rate.number <= 0 else _power_of_1000(rate.interval, expected)
                if slip:
                    text += f": a unit error by a factor of {1000 ** abs(slip):,}, the digits are right"
                yield Observation(
                    rule="achieved-rate",
                    outcome="supports" if agrees else "contradicts" if slip else "conflicts",
                    claims=(rate.id,) if slip else (rate.id, used.id),
                    arithmetic=text,
                    consistent={rate.id: rate.in_unit(expected.value)},
                )


def occupancy(case: AuditCase) -> Iterator[Observation]:
    """Tell the share of GPUs that are in use from the share of their peak that is used."""
    in_use, there = case.plan.num_gpus, case.plan.cluster.num_gpus
    for variant in VARIANTS:
        for claim in case.claimed("gpu_utilization", variant):
            if not is_full_share(case, claim):
                continue
            others = rates(case, variant)
            beside = "".join(f"; beside it stands {each.shown}" for each in others)
            yield Observation(
                rule="occupancy",
                outcome="contradicts",
                claims=(claim.id,),
                arithmetic=f"claimed {claim.shown}: {in_use} of {there} GPUs hold a module, "
                f"{in_use / there:.0%} occupancy; as "
                f"utilisation of their peak no kernel reaches it{beside}",
                consistent={claim.id: others[0].value} if others else {},
            )


def simulated_utilization(case: AuditCase) -> Iterator[Observation]:
    """Compare utilisations with the simulated ones of the same variant."""
    for variant in VARIANTS:
        projection = case.projection(variant)
        for claim in rates(case, variant):
            if projection is None:
                continue
            actual = projection.model_flops_utilization
            agrees = claim.interval.near(actual, PROJECTION_ERROR)
            yield Observation(
                rule="simulated-utilization",
                outcome="supports" if agrees else "contradicts",
                claims=(claim.id,),
                arithmetic=f"claimed {claim.shown}; simulated {actual:.1%} ({variant}, {case.pool.strategy.name}), "
                f"within {PROJECTION_ERROR:.0%}: {'yes' if agrees else 'no'}",
                consistent={claim.id: claim.in_unit(actual)},
            )


def beyond_published(case: AuditCase) -> Iterator[Observation]:
    """Compare utilisations with the highest that was published for a model with as many experts."""
    moe = case.plan.model.moe
    experts = moe.num_experts if moe else 1
    rows = published_for(experts)
    if not rows:
        return
    best = rows[0]
    for variant in VARIANTS:
        for claim in rates(case, variant):
            if claim.interval.low <= best.utilization:
                continue
            yield Observation(
                rule="beyond-published",
                outcome="doubts",
                claims=(claim.id,),
                arithmetic=f"claimed {claim.shown}; the highest of {len(rows)} published utilisations of "
                "models with at least "
                f"{experts} experts is {best.utilization:.1%} ({best.model}, {best.num_gpus} x {best.device}: "
                f"{best.source})",
                consistent={claim.id: claim.in_unit(best.utilization)},
            )


def compute_headroom(case: AuditCase) -> Iterator[Observation]:
    """Check that headroom and utilisation must add up to one."""
    for variant in VARIANTS:
        for claim in case.claimed("compute_headroom", variant):
            for used in rates(case, variant):
                left = used.interval * -1.0 + 1.0
                agrees = claim.interval.overlaps(left)
                yield Observation(
                    rule="compute-headroom",
                    outcome="supports" if agrees else "conflicts",
                    claims=(claim.id,) if agrees else (claim.id, used.id),
                    arithmetic=f"1 - {used.shown} = {left.value:.1%}; claimed {claim.shown}",
                    consistent={claim.id: claim.in_unit(left.value)},
                )


def _pairs(first: list[Claim], second: list[Claim]) -> list[tuple[Claim, Claim]]:
    return [(a, b) for a in first for b in second if a.number > 0 and b.interval.low > 0]


def _power_of_1000(found: Interval, expected: Interval) -> int:
    """Return n where `expected` is 1000^n times `found` up to the third digit, 0 where there is none."""
    nearest = round(math.log(expected.value / found.value, 1000))
    return nearest if nearest and (found * 1000.0**nearest).near(expected.value, _SAME_DIGITS) else 0
