"""Claims about power: what a cut costs, by the power curve and the clocks."""

from __future__ import annotations

from typing import TYPE_CHECKING

from moiety.cost.power import power_w
from moiety.projection.project import computing_share
from moiety.projection.scenario import scenario_of
from moiety.verify.claims import VARIANTS
from moiety.verify.observation import Observation

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from moiety.verify.case import AuditCase

_SLOWEST_CLOCK = 0.5
"""Share of the highest clock below which memory-bound work slows down too, and no law is known."""
_FREE = 0.02
"""Loss of throughput that is as good as none."""


def power_cut(case: AuditCase) -> Iterator[Observation]:
    """Compare a power cut beside a throughput with what that cut costs: compute time goes as 1/f, power as f^2.5."""
    claims = case.claimed("power_reduction")
    if not claims:
        return
    watts, speed, bound = _laws(case)
    limit = case.plan.cluster.device.max_power_w
    full = _clock_at(watts, limit)
    for variant in VARIANTS:
        for claim in case.claimed("power_reduction", variant):
            target = watts(full) * (1 - claim.number)
            slowed = _clock_at(watts, target)
            head = (
                f"{claim.shown} less than {watts(full):.0f} W is {target:.0f} W per GPU; the step is "
                f"{bound:.0%} compute-bound"
            )
            if watts(slowed) > target * (1 + 1e-6):
                yield Observation(
                    rule="power-cut",
                    outcome="contradicts",
                    claims=(claim.id,),
                    arithmetic=f"{head}; even at half the clock a GPU draws {watts(slowed):.0f} W",
                )
                continue
            cost = 1 - speed(slowed) / speed(full)
            beside = case.claimed("throughput", variant)
            free = cost <= _FREE
            text = f"{head}, so clocks fall from {full:.0%} to {slowed:.0%} of the highest and throughput by {cost:.1%}"
            if not free:
                kept = "; ".join(f"{each.shown} becomes {each.number * (1 - cost):,.0f} tokens/s" for each in beside)
                text += f"; {kept}" if kept else ""
            yield Observation(
                rule="power-cut",
                outcome="supports" if free else "conflicts" if beside else "doubts",
                claims=(claim.id,) if free else (claim.id, *(each.id for each in beside)),
                arithmetic=text,
                consistent={claim.id: 0.0} if not free else {},
            )


def _laws(case: AuditCase) -> tuple[Callable[[float], float], Callable[[float], float], float]:
    """Return watts and relative speed as functions of the clock's share of the highest, and the compute-bound share.

    The compute-bound share is that of compute time at peak in compute and memory time at peak together.
    """
    plan, device = case.plan, case.plan.cluster.device
    phase = case.evaluation().phases[-1]
    projection = plan.pools[-1].projection or plan.projection
    utilization = projection.model_flops_utilization if projection else 0.0
    mfu = computing_share(scenario_of(plan, case.calibration), plan.pools[-1], phase)
    moved = phase.outcome.memory_traffic_bytes / (phase.step_s * device.memory_bandwidth_bytes_per_s)
    mbu = min(moved, 1.0)
    bound = utilization / (utilization + mbu) if utilization + mbu else 0.0

    def speed(clock: float) -> float:
        return 1 / (bound / clock + 1 - bound)

    def watts(clock: float) -> float:
        done = speed(clock)
        busy = mfu * done / clock  # of what that clock could do
        is_moe = plan.model.moe is not None
        return power_w(device, case.calibration.power, mfu=busy, mbu=mbu * done, is_moe=is_moe, clock_share=clock)

    return watts, speed, bound


def _clock_at(watts: Callable[[float], float], target: float) -> float:
    """Return the highest clock, as a share, at which a GPU draws less than `target`; not below half."""
    low, high = _SLOWEST_CLOCK, 1.0
    if watts(high) < target:
        return high
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if watts(middle) < target else (low, middle)
    return low
