"""What-ifs of operating a plan: other routing, a price, the interruptions of a month."""

from __future__ import annotations

from typing import TYPE_CHECKING

from moiety.projection.project import evaluate
from moiety.records import Record
from moiety.search.failure import degrade

if TYPE_CHECKING:
    from moiety.calibration.calibration import Calibration
    from moiety.plan import Plan, Projection

INTERRUPTIONS_PER_GPU_HOUR = 1.97e-5
"""Unexpected interruptions: 419 in 54 days on 16,384 H100 (Llama 3, arXiv 2407.21783, section 3.3.4)."""
HOURS_PER_MONTH = 730.0


class Interruptions(Record):
    """What failures cost a plan in the long run."""

    per_gpu_hour: float
    per_month: float
    """Expected in 730 hours on all GPUs of the plan."""
    repair_hours: float
    """Until a lost GPU is back in its place."""
    lost_share: float
    """Of the throughput while one GPU is gone, averaged over which."""
    throughput_share: float
    """Of the whole plan's throughput that is left in the mean."""


class Price(Record):
    """What a plan costs."""

    per_gpu_hour: float
    """Of any currency."""
    per_hour: float
    per_million_tokens: float
    """Of the tokens that the plan's throughput counts."""


def skewed(plan: Plan, skew: float, calibration: Calibration) -> Projection:
    """Return the projection where the experts' loads follow a Zipf law of exponent `skew`, whatever was planned for.

    The placement stays as it is; what a trace said of it no longer holds.
    """
    pools = tuple(
        pool
        if pool.placement is None
        else pool.model_copy(update={"placement": pool.placement.model_copy(update={"traffic": None})})
        for pool in plan.pools
    )
    workload = plan.workload.model_copy(update={"routing_skew": skew})
    other = plan.model_copy(update={"workload": workload, "expert_shares": None, "pools": pools})
    projection = evaluate(other, calibration).plan.projection
    assert projection is not None, "the plan was evaluated"
    return projection


def priced(plan: Plan, per_gpu_hour: float) -> Price:
    """Return what an evaluated plan's tokens cost at a price for a GPU and hour."""
    assert plan.projection is not None, "the plan is evaluated"
    per_hour = per_gpu_hour * plan.num_gpus
    tokens = plan.projection.throughput_tokens_per_s * 3600
    return Price(per_gpu_hour=per_gpu_hour, per_hour=per_hour, per_million_tokens=1e6 * per_hour / tokens)


def interruptions(plan: Plan, repair_hours: float, calibration: Calibration) -> Interruptions:
    """Return the interruptions to expect and what they cost an evaluated plan.

    GPUs fail alone, at the rate that Llama 3's training saw, whatever part of a node it was. Repairs are taken not to
    overlap: a share of the time of `rate x repair_hours` a GPU is gone, at most all of it. The first GPU of each pool
    stands for all of them.
    """
    rate = INTERRUPTIONS_PER_GPU_HOUR * plan.num_gpus
    lost = sum(
        pool.num_gpus
        / plan.num_gpus
        * (1 - min(degrade(plan, [f"gpu:{pool.first_rank}"], calibration).throughput_share, 1.0))
        for pool in plan.pools
    )
    return Interruptions(
        per_gpu_hour=INTERRUPTIONS_PER_GPU_HOUR,
        per_month=rate * HOURS_PER_MONTH,
        repair_hours=repair_hours,
        lost_share=lost,
        throughput_share=1 - min(rate * repair_hours, 1.0) * lost,
    )
